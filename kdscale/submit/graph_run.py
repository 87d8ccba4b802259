"""Runs a graph of jobs: submits each when those before it have succeeded, and waits for all.

It keeps nothing: what has been done is asked of the back end, so a graph that was interrupted is
continued by submitting it again. A job that had failed before gets one further attempt; what it had
completed, it skips. A job that fails now blocks those that need it and nothing else.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from kdscale.submit.backend import Backend
from kdscale.submit.graph import Graph, Node, attempt_id
from kdscale.submit.idempotent import submit_once
from kdscale.submit.job import Job
from kdscale.submit.package import checkout, stage

State = Literal["waiting", "going", "done", "failed", "blocked"]
SETTLED = ("done", "failed", "blocked")
POLL_SECONDS = 2.0


def latest_attempt(jobs: dict[str, Job], base: str) -> tuple[int, Job | None]:
    """The newest job of that name and which attempt it is; (0, None) where there is none."""
    attempt = 0
    while attempt_id(base, attempt + 1) in jobs:
        attempt += 1
    return attempt, jobs[attempt_id(base, attempt)] if attempt else None


class GraphRun:
    """One run of the graph on a back end."""

    def __init__(
        self,
        backend: Backend,
        graph: Graph,
        say: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.backend = backend
        self.graph = graph
        self.say = say
        self.poll_seconds = poll_seconds
        self.told: dict[str, str] = {}
        jobs = self.jobs()
        # Of an earlier run of this graph: they are tried again.
        self.old_failures = {job.id for job in jobs.values() if job.status in ("FAILED", "STOPPED")}

    def run(self) -> bool:
        """Run until nothing is left to do; whether every job succeeded.

        On Ctrl-C, which is how a job is stopped, the jobs that are going are asked to stop too.
        """
        try:
            while True:
                states = self.step()
                if all(state in SETTLED for state in states.values()):
                    return all(state == "done" for state in states.values())
                time.sleep(self.poll_seconds)
        except KeyboardInterrupt:
            self.stop()
            raise

    def step(self) -> dict[str, State]:
        """Look at all jobs once, start those that can start, and return how the nodes stand."""
        jobs = self.jobs()
        states: dict[str, State] = {}
        for node in self.graph.nodes:
            states[node.name] = self.state(node, jobs, states)
            if states[node.name] == "waiting" and all(states[n] == "done" for n in node.needs):
                self.submit(node, jobs)
                states[node.name] = "going"
            self.tell(node, states[node.name])
        return states

    def state(self, node: Node, jobs: dict[str, Job], before: dict[str, State]) -> State:
        """How the node stands, given the states of those before it."""
        _, job = latest_attempt(jobs, f"{self.graph.id}-{node.name}")
        if job is not None and job.status == "SUCCEEDED":
            return "done"
        if job is not None and not job.is_over:
            return "going"
        if job is not None and job.id not in self.old_failures:
            return "failed"
        if any(before[name] in ("failed", "blocked") for name in node.needs):
            return "blocked"
        return "waiting"

    def submit(self, node: Node, jobs: dict[str, Job]) -> None:
        """Start the next attempt at the node."""
        attempt, _ = latest_attempt(jobs, f"{self.graph.id}-{node.name}")
        plan = self.graph.plan(node, attempt + 1)
        with TemporaryDirectory(prefix="kdscale-") as folder:
            staged = stage(checkout(), plan.config_text, Path(folder))
            submit_once(self.backend, plan, staged)
        self.say(f"{node.name}: submitted as {plan.submission_id}")

    def tell(self, node: Node, state: State) -> None:
        """Say how a node stands, whenever that changes."""
        if self.told.get(node.name) != state:
            self.told[node.name] = state
            self.say(f"{node.name}: {state}")

    def stop(self) -> None:
        """Ask the jobs that are going to stop."""
        jobs = self.jobs()
        for node in self.graph.nodes:
            _, job = latest_attempt(jobs, f"{self.graph.id}-{node.name}")
            if job is not None and not job.is_over:
                self.backend.stop(job.id)
                self.say(f"{node.name}: asked to stop")

    def jobs(self) -> dict[str, Job]:
        """All jobs of the back end, by id."""
        return {job.id: job for job in self.backend.list()}
