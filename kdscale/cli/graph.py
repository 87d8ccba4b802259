"""`kdscale submit --student`: one capture, several students, one command."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdscale.cli import options
from kdscale.cli.jobs import say
from kdscale.errors import ExitCode

if TYPE_CHECKING:
    from kdscale.submit import Backend
    from kdscale.submit.graph import Graph
    from kdscale.submit.job_plan import JobPlan


def run_graph(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH")],
    backend: options.BackendName = "ray",
) -> None:
    """Run the jobs of a graph: what a submitted graph starts, on the cluster."""
    from kdscale.submit import open_backend
    from kdscale.submit.graph import load_graph
    from kdscale.submit.graph_run import GraphRun

    planned = load_graph(graph.read_text(encoding="utf-8"))
    at = open_backend(backend, upload_to=planned.upload_to, say=print)
    try:
        succeeded = GraphRun(at, planned, print).run()
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.STOPPED) from error
    raise typer.Exit(0 if succeeded else 1)


def send_graph(backend: "Backend", name: str, graph: "Graph") -> tuple["JobPlan", bool]:
    """Submit the graph's driver, or find the one that is at it or has done it.

    Returns its plan and whether this call started it. A driver that failed or was stopped is
    followed by a further one, which continues. Raises KdscaleError for another graph of that id.
    """
    from kdscale import submit as room
    from kdscale.submit.graph_run import latest_attempt

    attempt, job = latest_attempt({job.id: job for job in backend.list()}, graph.id)
    if job is None or job.status in ("FAILED", "STOPPED"):
        attempt += 1
    if job is not None:
        # Refuses what is not this graph.
        room.check_same(job, graph.driver(name, 1))
    plan = graph.driver(name, attempt)
    with tempfile.TemporaryDirectory(prefix="kdscale-") as folder:
        staged = room.stage(room.checkout(), plan.config_text, Path(folder))
        found = room.submit_once(backend, plan, staged)
    if found is not None:
        say(f"The graph is there already. {room.describe(found)}")
    elif job is not None:
        say(f"Goes on where {job.id} ended.")
    for node in graph.nodes:
        say(f"  {graph.job_id(node, 1)}")
    return plan, found is None
