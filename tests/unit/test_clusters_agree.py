"""The clusters that we start wait equally long for a silent node, as do the nodes of the tests."""

from pathlib import Path

import pytest

from kdscale.config import KubeOptions, load_config
from kdscale.submit import kuberay, plan_job
from tests.nodes import HEALTH_CHECKS

ROOT = Path(__file__).parents[2]
FILES = ["cluster/local.sh", "ray_cluster.yaml", "cluster/gcp.yaml", "cluster/on_premise.yaml"]


@pytest.mark.parametrize("file", FILES)
def test_the_health_checks_are_those_of_the_tests(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for name, value in HEALTH_CHECKS.items():
        assert f"{name}={value}" in text


def test_pods_have_the_same_health_checks() -> None:
    config = load_config(ROOT / "jobs/configs/quickstart.yaml", ["output=s3://bucket/run"])
    manifest = kuberay.rayjob_manifest(plan_job(config), config, KubeOptions(image="kdscale"))
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        given = group["template"]["spec"]["containers"][0]["env"]
        environment = {each["name"]: each.get("value") for each in given}
        assert HEALTH_CHECKS.items() <= environment.items()


def test_a_silent_node_is_waited_for_as_long_as_the_docs_say() -> None:
    period, timeout, threshold = map(int, HEALTH_CHECKS.values())
    assert threshold * (period + timeout) == 28_000
    assert "hence 28 s" in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
