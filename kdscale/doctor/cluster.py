"""Checks of a cluster's nodes, and whether they reach each other, through Ray.

Every node reports its versions and limits. Then two ranks on two nodes all-reduce, for each node
with its neighbour in a ring: an unreachable node is in two pairs that fail.
"""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kdscale.doctor import gpus, machine, probes
from kdscale.doctor.machine import Check
from kdscale.errors import last_line

_CONNECT_SECONDS = 5
_PEER_SECONDS = 30.0
_CALL_SECONDS = 90.0  # an actor's start, with its import of torch, comes on top
_PAIRS_AT_ONCE = 8
_SAME_VERSIONS = "Use one image on all nodes, and the same versions where kdscale is called."


@dataclass(frozen=True)
class Node:
    """A node that is alive."""

    id: str
    ip: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.ip} ({self.id[:6]})"


def checks(address: str) -> Iterator[Check]:
    """Yield all findings on the cluster at `address`: "auto", or HEAD:6379.

    The connection is closed afterwards, unless it existed before.
    """
    import ray

    ours = not ray.is_initialized()
    if ours and (problem := _connect(address)) is not None:
        yield problem
        return
    try:
        nodes, here = _nodes(), probes.facts()["versions"]
        yield Check("ok", "cluster", f"{len(nodes)} nodes at {address}")
        for node, found in zip(nodes, _facts(nodes), strict=True):
            yield from judge(str(node), found, here)
        yield from reachability([node for node in nodes if node.cpus or node.gpus])
    finally:
        if ours:
            ray.shutdown()


def judge(node: str, found: dict[str, Any] | str, here: dict[str, str]) -> Iterator[Check]:
    """Yield findings on a node's facts, or on the text that says why there are none."""
    name = f"node {node}"
    if isinstance(found, str):
        yield Check("failed", name, found, "Look at the node's raylet.err in Ray's session folder.")
        return
    versions = found["versions"]
    other = {key: value for key, value in versions.items() if value != here[key]}
    if other:
        # `kdscale submit` brings the package along.
        fine = other == {"kdscale": "not installed"}
        value = ", ".join(f"{key} {value} (here {here[key]})" for key, value in other.items())
        yield Check("warning" if fine else "failed", name, value, _SAME_VERSIONS)
    else:
        yield Check("ok", name, ", ".join(f"{key} {value}" for key, value in versions.items()))
    limits = (
        machine.shared_memory(found["shared_memory"]),
        machine.disk(found["disk_free"], found["disk_folder"]),
        machine.open_files(found["open_files"]),
    )
    for limit in limits:
        if limit.word != "ok":
            yield Check(limit.word, name, f"{limit.name}: {limit.value}", limit.fix)
    # Without a GPU of its own the probe cannot open one.
    driver = gpus.judge_driver(found["gpus"], found["cuda"])
    if driver is not None:
        yield Check(driver.word, name, f"{driver.name}: {driver.value}", driver.fix)


def reachability(nodes: list[Node]) -> Iterator[Check]:
    """Yield a finding for every pair of neighbours in a ring; pairs may run at the same time."""
    if len(nodes) < 2:
        yield Check("ok", "network", "fewer than two nodes for workers: nothing to reach")
        return
    ring = [(node, nodes[(index + 1) % len(nodes)]) for index, node in enumerate(nodes)]
    pairs = ring if len(nodes) > 2 else ring[:1]
    # Of a ring with an odd number of nodes the last pair shares a node with the first.
    last = [pairs.pop()] if len(pairs) % 2 and len(pairs) > 1 else []
    for group in (pairs[::2], pairs[1::2], last):
        with ThreadPoolExecutor(_PAIRS_AT_ONCE) as pool:
            yield from pool.map(_pair, group)


def _pair(pair: tuple[Node, Node]) -> Check:
    """Run a 2-rank all-reduce between two nodes, with the backend that workers would use."""
    import ray

    backend = "nccl" if all(node.gpus for node in pair) else "gloo"
    name = f"{backend} {pair[0]} - {pair[1]}"
    peers = [_actor(node, backend) for node in pair]
    try:
        address = ray.get(peers[0].open.remote(), timeout=_CALL_SECONDS)
        pending = [peer.meet.remote(r, address, backend) for r, peer in enumerate(peers)]
        rates = []
        while pending:
            # The first failure ends the pair at once; the other rank would wait for it.
            ready, pending = ray.wait(pending, timeout=_CALL_SECONDS)
            if not ready:
                raise TimeoutError(f"no answer within {_CALL_SECONDS:g} s")
            rates += ray.get(ready)
    except (ray.exceptions.RayError, TimeoutError) as error:
        return Check("failed", name, last_line(error), _network_fix(backend))
    finally:
        for peer in peers:
            ray.kill(peer)
    return Check("ok", name, f"all-reduce at {min(rates):.0f} MB/s")


def _network_fix(backend: str) -> str:
    prefix = backend.upper()
    busy = " GPUs that are all taken do not answer either." if backend == "nccl" else ""
    return (
        f"Set {prefix}_SOCKET_IFNAME on the nodes to the interface that they share (`ip addr`; "
        "never lo or docker0), and let all TCP ports through between the nodes (the security "
        f"group's own members).{busy}"
    )


def _actor(node: Node, backend: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options = {
        "num_cpus": 0,
        "num_gpus": int(backend == "nccl"),
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
    }
    return ray.remote(probes.Peer).options(**options).remote(_PEER_SECONDS)


def _facts(nodes: list[Node]) -> list[dict[str, Any] | str]:
    """Return each node's facts, or why there are none."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(probes.facts)
    calls = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote()
        for node in nodes
    ]
    ray.wait(calls, num_returns=len(calls), timeout=_CALL_SECONDS)
    found: list[dict[str, Any] | str] = []
    for call in calls:
        try:
            found.append(ray.get(call, timeout=0))
        except (ray.exceptions.RayError, TimeoutError) as error:
            found.append(f"it does not answer: {last_line(error)}")
    return found


def _nodes() -> list[Node]:
    import ray

    # Sent as it is: a node's own kdscale may be another, or missing.
    ray.cloudpickle.register_pickle_by_value(probes)
    return [
        Node(
            id=node["NodeID"],
            ip=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _connect(address: str) -> Check | None:
    """Connect this process as a driver; return the problem where that fails."""
    import ray

    fix = "Give HEAD:6379 of a running cluster, from a machine that reaches it, or start one."
    host, _, port = address.rpartition(":")
    if address.startswith(("http://", "https://", "ray://")):
        value = f"{address} is not an address that a driver connects to"
        return Check("failed", "cluster", value, fix)
    try:
        if port.isdigit():
            # Ray would try for a minute.
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        return Check("failed", "cluster", f"{address}: {last_line(error)}", fix)
    return None
