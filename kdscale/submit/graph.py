"""A graph of jobs: one capture, then students side by side, then the evaluation of each.

    <graph>-capture ──┬──> <graph>-<a>-distill ──> <graph>-<a>-report
                      └──> <graph>-<b>-distill ──> <graph>-<b>-report

Every node is an ordinary job. The students' runs have outputs of their own below the first one's,
which is their `base`: rows, teacher and cache are used from there. The plan says what each node
needs; graph_run.py, itself a job, sees to the order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdscale.config import dump_config, fingerprint, load_config, load_overrides, parse_config
from kdscale.errors import KdscaleError
from kdscale.submit.job_plan import JobPlan, check_id, plan_job
from kdscale.submit.package import CONFIG_PATH

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
        """The id of an attempt at a node, counted from 1."""
        return attempt_id(f"{self.id}-{node.name}", attempt)

    def plan(self, node: Node, attempt: int) -> JobPlan:
        """The node as a job."""
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

    def driver(self, backend: str, attempt: int) -> JobPlan:
        """The job that submits the others; its config is the graph."""
        text = json.dumps(asdict(self))
        first = self.plan(self.nodes[0], 1)
        return JobPlan(
            submission_id=attempt_id(self.id, attempt),
            entrypoint=f"python jobs/graph.py {CONFIG_PATH} --backend {backend}",
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
        """The graph as a person reads it."""
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
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)


def attempt_id(base: str, attempt: int) -> str:
    """The id of the first job of that name, or of one that tries again."""
    return base if attempt == 1 else f"{base}.{attempt}"


def load_graph(text: str) -> Graph:
    """The graph that `Graph.driver` wrote."""
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
    """The graph that captures for `config_path` once and distils a student for each file.

    A file has the fields in which a student differs from the config: `distill`, `evaluate` or
    `tracking`. Raises KdscaleError for others, and for two students of one name.
    """
    config = load_config(config_path, overrides)
    # Absolute paths, as all nodes run elsewhere.
    first = plan_job(config)
    nodes = [Node("capture", (), first.config_text, until="cache")]
    names = [Path(file).stem for file in student_files]
    if len(set(names)) < len(names) or "capture" in names:
        raise KdscaleError(
            f"The students {', '.join(names)} need names of their own, other than `capture`.",
            "Rename the files: a student is called as its file, without .yaml.",
        )
    for name, file in zip(names, student_files, strict=True):
        text = _student_config(first, name, file)
        nodes.append(Node(f"{name}-distill", ("capture",), text, only="distill"))
        nodes.append(Node(f"{name}-report", (f"{name}-distill",), text, start="evaluate"))
    graph_id = graph_id or f"{config.name}-graph"
    for node in nodes:
        check_id(f"{graph_id}-{node.name}")
    names_ = tuple(secret_names)
    return Graph(graph_id, tuple(nodes), dict(environment), names_, grace_seconds, upload_to)


def _student_config(base: JobPlan, name: str, file: str) -> str:
    changes = load_overrides(file)
    for change in changes:
        field = change.partition("=")[0]
        if field.partition(".")[0] not in _OF_A_STUDENT:
            raise KdscaleError(
                f"The student {file} sets {field}, but rows, teacher and cache are one for all.",
                f"Leave only {', '.join(_OF_A_STUDENT)} in it.",
            )
    own = [f"name={json.dumps(parse_config(base.config_text).name + '-' + name)}"]
    own += [f"output={json.dumps(f'{base.output}/students/{name}')}"]
    own += [f"base={json.dumps(base.output)}"]
    return dump_config(parse_config(base.config_text, [*changes, *own], origin=file))
