"""Ray Data: a task for each of many items, their answers in the items' order."""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from kdscale.store import explain

# A line for each execution, and a warning that progress bars are off, tell the user nothing; an
# error of a task is raised, and its traceback with it where it is not for the user to mend. Pieces
# with names that are not UTF-8 are pickled, which is as good.
_RAY_LOGGERS = {
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data._internal.tensor_extensions.arrow": logging.ERROR,
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
}


def stream(
    task: Callable[..., Iterator[pa.Table]],
    items: list[dict[str, Any]],
    here: bool,
    options: dict[str, Any],
) -> Generator[dict[str, Any], None, None]:
    """What `task` says of each item, in order: it gets a table of one item, and the `options` by
    name, and yields tables. As many run at a time as there are cores; `here`: on this machine only.

    Closing it ends them. A KdscaleError of a task is raised as it is.
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
    """Where the tasks can run: this machine's files are read and written here only, a store's
    anywhere.

    Reading here takes no CPU from Ray's books, because the head node of a cluster often has none;
    the pool's size keeps it to the cores there are.
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
    """Raise what a task met as the KdscaleError that it is or means, without Ray's wrapping."""
    try:
        yield
    except Exception as error:  # Ray's own types differ from release to release
        if (found := explain(error)) is not None:
            raise found from None
        raise
