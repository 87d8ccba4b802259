"""The clusters that we start wait equally long for a silent node, as do the nodes of the tests."""

from pathlib import Path

import pytest

from tests.nodes import HEALTH_CHECKS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", ["cluster/local.sh", "ray_cluster.yaml"])
def test_the_health_checks_are_those_of_the_tests(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for name, value in HEALTH_CHECKS.items():
        assert f"{name}={value}" in text


def test_a_silent_node_is_waited_for_as_long_as_the_docs_say() -> None:
    period, timeout, threshold = map(int, HEALTH_CHECKS.values())
    assert threshold * (period + timeout) == 28_000
    assert "hence 28 s" in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
