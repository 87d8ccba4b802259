"""A run over three real nodes, submitted from outside, against an undisturbed run in one place.

Its stages run once more while workers, nodes, network, driver or S3 server fail.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdscale.store import Store, open_store
from tests.environment import environment
from tests.nodes import Nodes, why_not
from tests.recovery import FAULTS, SHARDS, STEPS, Stages, kill_node, submit
from tests.runs import FinishedRun

_WHY_NOT = why_not()

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or ""),
]


@pytest.fixture(scope="module")
def nodes(finished_run: FinishedRun) -> Iterator[Nodes]:
    """Start a head and three workers, which share the corpus, and their S3 server."""
    with (
        tempfile.TemporaryDirectory(prefix="kdn", ignore_cleanup_errors=True) as folder,
        Nodes(Path(folder), finished_run.corpus) as nodes,
        environment(**nodes.server.env),
    ):
        yield nodes


@pytest.fixture(scope="module")
def whole(nodes: Nodes, finished_run: FinishedRun) -> Store:
    """Return the output of an undisturbed run over the nodes, which all nodes reach."""
    url = f"{nodes.server.url}/whole"
    job = submit(nodes, finished_run.corpus, url)
    assert job.finish() == 0, job.log[-6000:]
    assert nodes.env["AWS_SECRET_ACCESS_KEY"] not in job.log
    return open_store(url)


@pytest.fixture(scope="module")
def stages(nodes: Nodes, finished_run: FinishedRun, whole: Store) -> Stages:
    return Stages(nodes, finished_run.corpus, whole)


def test_a_node_killed_in_the_middle_of_a_capture_costs_units_in_flight_and_changes_nothing(
    stages: Stages,
) -> None:
    ended = stages.run("cache", kill_node)
    assert ended.starts[0] == 0
    assert ended.done_then <= ended.starts[-1] < SHARDS
    assert stages.differences(ended, "cache") == []


def test_a_whole_run_over_nodes_equals_one_in_one_place(
    whole: Store, finished_run: FinishedRun
) -> None:
    here = open_store(str(finished_run.output))
    mine, theirs = (json.loads(store.get("results.json")) for store in (whole, here))
    assert mine["models"] == theirs["models"]
    assert whole.exists("report/index.html")


@pytest.mark.parametrize("stage", ["cache", "distill"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_stage_survives_a_fault_and_ends_as_without_it(
    stages: Stages, stage: str, fault: str
) -> None:
    ended = stages.run(stage, FAULTS[fault])
    assert ended.done_then < (SHARDS if stage == "cache" else STEPS)
    assert stages.differences(ended, stage) == []
