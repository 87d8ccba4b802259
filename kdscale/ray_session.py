"""Connect to the cluster named by the environment, or start Ray on this machine for this run."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray is initialised inside the block. A Ray that was running before is left running."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray Train's own collectives would wait for ever for a rank that is gone.
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1800")
    # Workers must not move to a folder of Ray's: relative paths in a config would break there.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Keeps CUDA_VISIBLE_DEVICES as it is for tasks without a GPU, as later releases of Ray do.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options = {}
    if "RAY_ADDRESS" not in os.environ:
        options = {"address": "local", "include_dashboard": False}
        # Ray warns at every start that a cluster of one's own is protected by a token.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # What workers have to say comes through the stage's board (progress.py), free of Ray's remarks;
    # their whole output stays in Ray's session folder.
    whole_logs = os.environ.get("KDSCALE_WORKER_LOGS") == "1"
    # Ray takes SIGTERM for itself, also from one who has something to save.
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level="WARNING", log_to_driver=whole_logs, **options)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def beside_driver(actor: type) -> Any:
    """The class as an actor that takes no worker's place, on the node of its maker: a run ends with
    its driver's node, but not with another."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor)
