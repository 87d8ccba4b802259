"""Groups of workers that hold a sharded teacher together, as a run would make them."""

from kdscale.config.training import TeacherGroup
from kdscale.distributed.groups import fits
from kdscale.errors import KdscaleError
from kdscale.plan.inputs import PlanInputs


def teacher_ranks(group: TeacherGroup, workers: int, inputs: PlanInputs) -> int:
    """Return the workers of a group, of so many `workers`; all where they make no such groups."""
    per_node = min(workers, inputs.hardware.devices_per_node)
    if isinstance(group, int):
        return workers if workers % group else group
    if group == "all" or per_node == 1 or workers % per_node:
        return workers
    if group == "node":
        return per_node
    weights, memory = inputs.width * inputs.teacher.parameters, inputs.hardware.memory_gib * 2**30
    return per_node if inputs.is_gpu and fits(weights, per_node, memory) else workers


def group_link(ranks: int, workers: int, inputs: PlanInputs) -> float:
    """Return bytes a second of a worker to its group of `ranks`, of so many `workers`.

    Groups that do not divide a machine's workers reach over to the next machine.
    """
    reaches_over = bool(inputs.hardware.devices_per_node % ranks)
    return inputs.link(workers if reaches_over else ranks)


def check_groups(inputs: PlanInputs) -> None:
    """Raise KdscaleError where the machines would have different numbers of workers."""
    config = inputs.config
    placed = (
        ("cache.capture", config.cache.capture.teacher_group, config.cache.capture.workers.count),
        ("distill.online", config.distill.online.teacher_group, config.distill.workers.count),
    )
    per_node = inputs.hardware.devices_per_node
    for name, group, workers in placed:
        if group == "node" and (per_node == 1 or (workers > per_node and workers % per_node)):
            raise KdscaleError(
                f"{name}.teacher_group is `node`, and {workers} workers do not fill machines of "
                f"{per_node} {inputs.hardware.name} equally, with two or more on each.",
                f"Set {name}.teacher_group to `auto` or `all`, or the number of workers to a "
                "multiple of those of a machine.",
            )


def describe_groups(inputs: PlanInputs) -> list[str]:
    """Return a sentence on the groups that hold a sharded teacher in the capture, if it is."""
    capture = inputs.config.cache.capture
    workers = capture.workers.count
    if inputs.config.cache.reuse is not None or capture.zero.stage == 0 or workers == 1:
        return []
    ranks = teacher_ranks(capture.teacher_group, workers, inputs)
    link = group_link(ranks, workers, inputs) / 1e9
    over = f"all {workers} workers" if ranks == workers else f"groups of {ranks} workers"
    return [f"Capture: the teacher is sharded over {over} and gathered at {link:g} GB/s."]
