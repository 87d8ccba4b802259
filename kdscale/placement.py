"""Where the helpers of a run live: on the driver's node, to end with the driver and with no other.

Ray puts an actor that asks for no resources on any node. Lost with that node, it would take the
workers of all others along, which speak to it.
"""

from typing import Any


def beside_driver() -> dict[str, Any]:
    """Options of an actor that takes no worker's place and stays on the node of its caller."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }
