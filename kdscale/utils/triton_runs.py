"""Check that kernels in Triton run on a device."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

log = logging.getLogger(__name__)


def triton_runs(device: str, what: str, trial: Callable[[], object]) -> bool:
    """Return whether `trial` runs on a `device` of that type; a warning says why it does not.

    Triton compiles at first use, for which it needs a C compiler. `what`: what is computed.
    """
    if device != "cuda" or find_spec("triton") is None:
        return False
    try:
        trial()
    except Exception as error:  # a compiler's, a driver's or Triton's own: each has its own kind
        log.warning("%s without Triton, which fails here: %s", what, error)
        return False
    return True
