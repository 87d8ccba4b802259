"""What a node's facts come to, and which pairs of nodes are tried; real nodes are in tests/ray."""

import socket
from typing import Any

import pytest

from kdscale.doctor import cluster, probes
from kdscale.doctor.cluster import Node
from kdscale.doctor.machine import Check


@pytest.fixture
def facts() -> dict[str, Any]:
    return probes.facts()


def judged(facts: dict[str, Any] | str, here: dict[str, str]) -> list[Check]:
    return list(cluster.judge("10.0.0.7 (abc)", facts, here))


def test_a_node_like_this_one_is_all_right(facts: dict[str, Any]) -> None:
    facts |= {"shared_memory": None, "disk_free": 2**40, "open_files": 65536}
    (found,) = judged(facts, facts["versions"])
    assert (found.word, found.name) == ("ok", "node 10.0.0.7 (abc)")


def test_versions_that_differ_are_named(facts: dict[str, Any]) -> None:
    here = facts["versions"] | {"ray": "2.51.0", "torch": "2.9.1"}
    found = judged(facts, here)[0]
    assert found.word == "failed"
    assert f"ray {facts['versions']['ray']} (here 2.51.0)" in found.value
    assert "(here 2.9.1)" in found.value
    assert "kdscale" not in found.value


def test_kdscale_may_be_missing_on_a_node_as_submit_brings_it(facts: dict[str, Any]) -> None:
    here = dict(facts["versions"])
    facts["versions"]["kdscale"] = "not installed"
    assert judged(facts, here)[0].word == "warning"
    facts["versions"]["torch"] = "not installed"
    assert judged(facts, here)[0].word == "failed"


def test_limits_of_a_node_warn_under_its_name(facts: dict[str, Any]) -> None:
    facts |= {"shared_memory": 64 * 2**20, "disk_free": 2**30, "open_files": 1024}
    values = [found.value for found in judged(facts, facts["versions"])[1:]]
    assert values[0] == "shared memory: 0.1 GiB"
    assert values[1].startswith("disk: 1.0 GiB free in ")
    assert values[2] == "open files: 1,024"


def test_a_silent_node_fails(facts: dict[str, Any]) -> None:
    (found,) = judged("it does not answer: timed out", facts["versions"])
    assert found.word == "failed"


@pytest.mark.parametrize(
    ("count", "pairs"),
    [
        (2, {"01"}),
        (3, {"01", "12", "20"}),
        (4, {"01", "12", "23", "30"}),
        (5, {"01", "12", "23", "34", "40"}),
    ],
)
def test_every_node_meets_its_neighbours_and_never_two_at_once(
    count: int, pairs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = []

    class Pool:
        def __init__(self, threads: int) -> None: ...
        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, work: object, group: list[tuple[Node, Node]]) -> list[Check]:
            groups.append([f"{a.id}{b.id}" for a, b in group])
            return [Check("ok", f"{a.id}{b.id}", "") for a, b in group]

    monkeypatch.setattr(cluster, "ThreadPoolExecutor", Pool)
    nodes = [Node(str(number), "10.0.0.1", 1, 0) for number in range(count)]
    assert {found.name for found in cluster.reachability(nodes)} == pairs
    for group in groups:
        assert len(set("".join(group))) == 2 * len(group)


def test_a_single_node_has_nobody_to_reach() -> None:
    (found,) = cluster.reachability([Node("0", "10.0.0.1", 1, 0)])
    assert found.word == "ok"


@pytest.mark.parametrize("address", ["http://10.0.0.1:8265", "ray://10.0.0.1:10001"])
def test_addresses_that_no_driver_connects_to(address: str) -> None:
    (found,) = cluster.checks(address)
    assert (found.word, found.name) == ("failed", "cluster")
    assert "HEAD:6379" in found.fix


def test_nobody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    (found,) = cluster.checks(address)
    assert found.word == "failed"
    assert "Connection refused" in found.value
