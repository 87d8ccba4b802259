"""Errors of workers: which of them a restart can repair, and the user's text of all others.

A restart helps after the loss of a peer, a node, a device or a connection. Any other error would
come again, whatever its type, and ends the run at once.
"""

import errno
import re
from collections.abc import Iterator

from kdscale.errors import KdscaleError
from kdscale.store import explain
from kdscale.store.retry import is_transient

# Bases of torch.distributed's errors, of Ray's for what is gone, and of pools whose process died:
# by name, so that nothing is imported for them.
_LOST = {"DistError", "DistBackendError", "DistNetworkError", "RayError", "BrokenExecutor"}
_LOST_ERRNO = {
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.EREMOTEIO),
    *(errno.ENETRESET, errno.EHOSTDOWN, errno.ENOTCONN, errno.ENODEV, errno.ENXIO),
}
# gloo, NCCL, CUDA and a process that is ending raise plain RuntimeErrors.
_LOST_TEXT = re.compile(
    r"gloo|nccl|connection|peer|broken pipe|socket|timed? ?out|tcpstore|heartbeat|rendezvous"
    r"|shut(ting)? ?down|uncorrectable|unspecified launch failure|unknown error|fallen off the bus"
    r"|device.*(lost|unavailable|busy)|driver",
    re.IGNORECASE,
)
# Ray's text if a worker lacks a package, or has another version of it.
_CODE_TEXT = re.compile(r"No module named|cannot import name|pickl")
_NOT_LOST_TEXT = re.compile(r"out of memory|device-side assert", re.IGNORECASE)

_AGAIN = "Then run the same command again: finished work is kept."
_GENERIC = f"Fix the cause: the lines above say where it was raised. {_AGAIN}"
_LESS_MEMORY = (
    "Lower the stage's micro_batch_size, shard the model over more workers (zero.stage 3), or take "
    f"larger ones. {_AGAIN}"
)


def is_retryable(error: BaseException) -> bool:
    """Return whether a new group of workers may succeed where this error was raised.

    The errors that it was raised from, or while handling, count too: the loss of a peer may show
    in the code that handles it.
    """
    if isinstance(error, KdscaleError):
        return False
    return any(_is_lost(link) for link in _links(error))


def describe_failure(error: BaseException, what: str) -> tuple[KdscaleError, bool]:
    """Return what the user reads of an error that no restart can repair.

    `what` opens its text. The flag says whether the text is clear without the traceback.
    """
    if isinstance(error, KdscaleError):
        return error, True
    first = next(iter(str(error).strip().splitlines()), "")
    kind = type(error).__name__
    problem = f"{what}: {kind}{': ' if first else ''}{first}"
    if _is_out_of_memory(error):
        return KdscaleError(problem, _LESS_MEMORY), True
    if (place := explain(error)) is not None:
        return KdscaleError(f"{what}: {place.problem}", f"{place.fix} {_AGAIN}"), True
    return KdscaleError(problem, _GENERIC), False


def _is_lost(error: BaseException) -> bool:
    if _is_out_of_memory(error) and "RayError" not in _names(error):
        return False
    if "RayTaskError" in _names(error):
        return False  # its cause decides
    if isinstance(passes := getattr(error, "passes", None), bool):
        return passes  # a store's own error knows
    if is_transient(error) or _names(error) & _LOST:
        return not _CODE_TEXT.search(str(error))
    if isinstance(error, OSError):
        return error.errno in _LOST_ERRNO
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and not isinstance(error, NotImplementedError | RecursionError)
        and bool(_LOST_TEXT.search(text))
        and not _NOT_LOST_TEXT.search(text)
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU or the machine is out of memory.

    The allocator of CPU tensors raises a RuntimeError.
    """
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or "OutOfMemoryError" in _names(error)
        or (isinstance(error, RuntimeError) and "out of memory" in text)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in text)
    )


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _links(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, and those that it was raised from or while handling."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop()
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            context = None if link.__suppress_context__ else link.__context__
            waiting += [link.__cause__, context, getattr(link, "cause", None)]
