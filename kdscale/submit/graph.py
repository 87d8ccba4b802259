"""A graph of jobs: one capture, then students side by side, then the evaluation of each.

    <graph>-capture ──┬──> <graph>-<a>-distill ──> <graph>-<a>-report
                      └──> <graph>-<b>-distill ──> <graph>-<b>-report

Every node is an ordinary job. The students' runs have outputs of their own below the first one's,
which is their `base`: rows, teacher and cache are used from there. The graph is run by a job of the
cluster, which submits each node when those that it needs have succeeded. That job keeps no state:
what is done is asked of the back end, so an interrupted graph continues when it is submitted again.
A job that had failed before gets one further attempt; one that fails now blocks those that need it.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from kdscale.config import dump_config, fingerprint, load_config, load_overrides, parse_config
from kdscale.errors import KdscaleError
from kdscale.submit.backend import Backend, check_same, submit_once
from kdscale.submit.job import Job
from kdscale.submit.job_plan import JobPlan, check_id, plan_job
from kdscale.submit.package import CONFIG_PATH, code_root, stage

State = Literal["waiting", "going", "done", "failed", "blocked"]
SETTLED = ("done", "failed", "blocked")
POLL_SECONDS = 2.0
# Not the seed: teacher and cache depend on it.
_OF_A_STUDENT = ("distill", "evaluate", "tracking")


@dataclass(frozen=True)
class Node:
    """A job of the graph. `needs` names the nodes that have to succeed before."""

    name: str
    needs: tuple[str, ...]
    config_text: str
    only: str | None = None
    start: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can run, and what all of them are submitted with."""

    id: str
    nodes: tuple[Node, ...]
    environment: dict[str, str]
    secrets: tuple[str, ...]
    grace_seconds: int
    upload_to: str | None = None

    def job_id(self, node: Node, attempt: int) -> str:
        """Return the id of an attempt at a node, counted from 1."""
        return attempt_id(f"{self.id}-{node.name}", attempt)

    def plan(self, node: Node, attempt: int) -> JobPlan:
        """Return the node as a job."""
        return plan_job(
            parse_config(node.config_text),
            only=node.only,
            start=node.start,
            until=node.until,
            submission_id=self.job_id(node, attempt),
            environment=self.environment,
            secret_names=self.secrets,
            grace_seconds=self.grace_seconds,
        )

    @property
    def outputs(self) -> dict[str, str]:
        """Outputs of the runs by the id of the job that is first to work on them."""
        runs = {self.job_id(node, 1): parse_config(node.config_text) for node in self.nodes}
        return {job: run.output for job, run in runs.items()}

    def driver(self, attempt: int) -> JobPlan:
        """Return the job that submits the others; its config is the graph."""
        text = json.dumps(asdict(self))
        first = self.plan(self.nodes[0], 1)
        return JobPlan(
            submission_id=attempt_id(self.id, attempt),
            entrypoint=f"python jobs/run.py run-graph {CONFIG_PATH}",
            environment=first.environment,
            metadata={
                **first.metadata,
                "job_name": self.id,
                "digest": fingerprint(text),
            },
            config_text=text,
            places=first.places,
            output=first.output,
            given=first.given,
            secrets=self.secrets,
        )

    def summary(self) -> dict[str, Any]:
        """Return the graph in a readable form."""
        return {
            "graph": self.id,
            "jobs": [
                {
                    "id": self.job_id(node, 1),
                    "needs": [self.job_id(self.node(name), 1) for name in node.needs],
                    "command": self.plan(node, 1).entrypoint,
                    "output": parse_config(node.config_text).output,
                }
                for node in self.nodes
            ],
        }

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        return next(node for node in self.nodes if node.name == name)


def attempt_id(base: str, attempt: int) -> str:
    """Return the id of the first job of that name, or of a further attempt."""
    return base if attempt == 1 else f"{base}.{attempt}"


def load_graph(text: str) -> Graph:
    """Return the graph that `Graph.driver` wrote."""
    tree = json.loads(text)
    nodes = tuple(Node(**{**node, "needs": tuple(node["needs"])}) for node in tree.pop("nodes"))
    return Graph(nodes=nodes, **{**tree, "secrets": tuple(tree["secrets"])})


def plan_graph(
    config_path: str,
    overrides: Sequence[str],
    student_files: Sequence[str],
    *,
    graph_id: str | None,
    environment: Mapping[str, str],
    secret_names: Sequence[str],
    grace_seconds: int,
    upload_to: str | None = None,
) -> Graph:
    """Return the graph that captures for `config_path` once and distils a student for each file.

    A file has the fields in which a student differs from the config: `distill`, `evaluate` or
    `tracking`. Raises KdscaleError for others, and for two students of one name.
    """
    config = load_config(config_path, overrides)
    first = plan_job(config)  # makes paths absolute
    nodes = [Node("capture", (), first.config_text, until="cache")]
    names = [Path(file).stem for file in student_files]
    if len(set(names)) < len(names) or "capture" in names:
        raise KdscaleError(
            f"The students {', '.join(names)} need different names, other than `capture`.",
            "Rename the files: a student has the name of its file, without .yaml.",
        )
    for name, file in zip(names, student_files, strict=True):
        text = _student_config(first, name, file)
        nodes.append(Node(f"{name}-distill", ("capture",), text, only="distill"))
        nodes.append(Node(f"{name}-report", (f"{name}-distill",), text, start="evaluate"))
    graph_id = graph_id or f"{config.name}-graph"
    for node in nodes:
        check_id(f"{graph_id}-{node.name}")
    return Graph(
        graph_id, tuple(nodes), dict(environment), tuple(secret_names), grace_seconds, upload_to
    )


def submit_graph(
    backend: Backend, graph: Graph, say: Callable[[str], None]
) -> tuple[JobPlan, Job | None]:
    """Submit the graph's driver, or find the one that runs it or has run it.

    Returns the driver's plan, and the job of an earlier submission, if there is one. A driver that
    failed or was stopped is followed by a further one, which continues. Raises KdscaleError for
    another graph of that id.
    """
    attempt, job = latest_attempt({job.id: job for job in backend.list()}, graph.id)
    if job is None or job.status in ("FAILED", "STOPPED"):
        attempt += 1
    if job is not None:
        check_same(job, graph.driver(1))
    plan = graph.driver(attempt)
    found = _submit(backend, plan)
    if found is None and job is not None:
        say(f"Continues where {job.id} ended.")
    for node in graph.nodes:
        say(f"  {graph.job_id(node, 1)}")
    return plan, found


def _student_config(base: JobPlan, name: str, file: str) -> str:
    changes = load_overrides(file)
    for change in changes:
        field = change.partition("=")[0]
        if field.partition(".")[0] not in _OF_A_STUDENT:
            raise KdscaleError(
                f"The student {file} sets {field}, but all students share rows, teacher and cache.",
                f"Leave only {', '.join(_OF_A_STUDENT)} in it.",
            )
    own = [f"name={json.dumps(parse_config(base.config_text).name + '-' + name)}"]
    own += [f"output={json.dumps(f'{base.output}/students/{name}')}"]
    own += [f"base={json.dumps(base.output)}"]
    return dump_config(parse_config(base.config_text, [*changes, *own], origin=file))


def latest_attempt(jobs: dict[str, Job], base: str) -> tuple[int, Job | None]:
    """Return the number of the newest attempt at that name and its job; (0, None) without one."""
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
        self.reported: dict[str, str] = {}
        jobs = self.jobs()
        # Of an earlier run of this graph: they are tried again.
        self.old_failures = {job.id for job in jobs.values() if job.status in ("FAILED", "STOPPED")}

    def run(self) -> bool:
        """Run until nothing is left to do; return whether every job succeeded.

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
        """Look at all jobs once, start those that can start, and return the nodes' states."""
        jobs = self.jobs()
        states: dict[str, State] = {}
        for node in self.graph.nodes:
            states[node.name] = self.state(node, jobs, states)
            if states[node.name] == "waiting" and all(states[n] == "done" for n in node.needs):
                self.submit(node, jobs)
                states[node.name] = "going"
            self.report(node, states[node.name])
        return states

    def state(self, node: Node, jobs: dict[str, Job], before: dict[str, State]) -> State:
        """Return the node's state, given the states of those before it."""
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
        _submit(self.backend, plan)
        self.say(f"{node.name}: submitted as {plan.submission_id}")

    def report(self, node: Node, state: State) -> None:
        """Print a node's state, whenever that changes."""
        if self.reported.get(node.name) != state:
            self.reported[node.name] = state
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
        """Return all jobs of the back end, by id."""
        return {job.id: job for job in self.backend.list()}


def _submit(backend: Backend, plan: JobPlan) -> Job | None:
    """Submit the plan with the files of this installation; see `submit_once`."""
    with TemporaryDirectory(prefix="kdscale-") as folder:
        return submit_once(backend, plan, stage(code_root(), plan.config_text, Path(folder)))
