"""Ray Data: a task for each of many items, their results in the items' order."""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from kdscale.store import explain

# A line for each execution, and a warning that progress bars are off, do not help the user; an
# error of a task is raised, with its traceback where it is not a KdscaleError. Names of files that
# are not UTF-8 are pickled, which is as good.
_RAY_LOGGERS = {
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data._internal.tensor_extensions.arrow": logging.ERROR,
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
}


def ray_map(
    task: Callable[..., Iterator[pa.Table]],
    items: list[dict[str, Any]],
    here: bool,
    options: dict[str, Any],
) -> Generator[dict[str, Any], None, None]:
    """Run `task` for each item and yield the rows of its results, in the items' order.

    `task` gets a table of one item and the `options` by name, and yields tables. As many tasks run
    at a time as there are cores; `here` keeps them on this machine. Closing the generator ends
    them. A KdscaleError of a task is raised as it is.
    """
    if not items:
        return
    import ray

    for name, level in _RAY_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    data = ray.data.from_items(items, override_num_blocks=len(items))
    # The data set's own settings, which all that is derived from it inherits.
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data = data.map_batches(
        task,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs=options,
        **_placement(here, len(items)),
    )
    with _readable_errors():
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from table.to_pylist()


def _placement(here: bool, tasks: int) -> dict[str, Any]:
    """Return where the tasks run: files of this machine are read and written here only.

    Tasks on this machine reserve no CPU of Ray's, because the head node of a cluster often has
    none; the pool's size keeps them to the cores there are.
    """
    if not here:
        return {}
    import ray

    return {
        "num_cpus": 0,
        "compute": ray.data.TaskPoolStrategy(size=min(tasks, os.cpu_count() or 1)),
        "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    }


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Raise a task's error as the KdscaleError that it is or stands for, without Ray's wrapping."""
    try:
        yield
    except Exception as error:  # Ray's own types differ from release to release
        if (found := explain(error)) is not None:
            raise found from None
        raise
