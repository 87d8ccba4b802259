"""Errors of a worker: which end the run at once, and their text for the user."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import (
    ActorDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
)
from safetensors import SafetensorError, safe_open

from kdscale.distributed.failures import describe_failure, is_retryable
from kdscale.errors import KdscaleError
from tests.ranks import run_ranks


def raised(act: Callable[[], object]) -> Exception:
    """Return the error that `act` raises."""
    with pytest.raises(Exception) as found:  # noqa: PT011
        act()
    return found.value


def wrapped(cause: Exception) -> Exception:
    """As a remote call raises it."""
    found: Exception = RayTaskError("f", "trace", cause).as_instanceof_cause()
    return found


def while_handling(first: Exception, then: Exception) -> Exception:
    def act() -> None:
        try:
            raise first
        except type(first):
            raise then  # noqa: B904

    return raised(act)


def pointer(folder: Path) -> Exception:
    file = folder / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    return raised(lambda: safe_open(file, framework="pt").__enter__())


def recurse() -> None:
    recurse()


def test_an_error_that_would_come_again_is_final(tmp_path: Path) -> None:
    damaged = pointer(tmp_path)
    assert isinstance(damaged, SafetensorError)
    for error in (
        damaged,
        raised(lambda: torch.ones(2, 3) @ torch.ones(2, 3)),
        raised(lambda: torch.nn.functional.embedding(torch.tensor([9]), torch.ones(3, 2))),
        raised(lambda: torch.empty(1 << 60)),
        raised(lambda: (tmp_path / "none").read_text()),
        raised(lambda: 1 // 0),
        raised(recurse),
        raised(lambda: torch.nn.Module().forward(1)),
        OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
        PermissionError(errno.EACCES, "Permission denied", "/data"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("NCCL error: unhandled cuda error 'out of memory'"),
        RuntimeError("DDP expects same model across all ranks, but Rank 0 has 3 params"),
        MemoryError(),
        NotImplementedError("no such operator"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        KeyError("mask"),
        wrapped(ValueError("bad row")),
        RaySystemError("System error: No module named 'flash_attn'"),
        KdscaleError("The cache is damaged.", "Repair it."),
    ):
        assert not is_retryable(error), repr(error)


def test_a_loss_is_retried() -> None:
    for error in (
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
            "[127.0.0.1]:43210"
        ),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("[c10d] Broken pipe"),
        RuntimeError("NCCL communicator was aborted on rank 1"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("cannot schedule new futures after interpreter shutdown"),
        dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("read timed out"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ActorDiedError(),
        OutOfMemoryError("the node was short of memory, a task was killed"),
        ObjectLostError("00ff", "owner", "site"),
        wrapped(ConnectionError("endpoint")),
        while_handling(RuntimeError("gloo: Connection reset by peer"), AttributeError("grad")),
    ):
        assert is_retryable(error), repr(error)


def die_or_report(folder: str) -> None:
    """Rank 1 is killed while rank 0 waits for it in a collective."""
    dist.barrier()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.all_reduce(torch.ones(1))
    except Exception as error:
        Path(folder, "retryable").write_text(str(is_retryable(error)))
        os._exit(0)


@pytest.mark.dist
def test_gloos_text_for_a_lost_peer_is_known(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1 died"):
        run_ranks(die_or_report, 2, str(tmp_path))
    assert (tmp_path / "retryable").read_text() == "True"


@pytest.mark.parametrize(
    ("error", "problem", "fix", "is_clear"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ..."),
            "'cache' failed on its workers: OutOfMemoryError: CUDA out of memory. Tried to "
            "allocate 2 GiB.",
            "micro_batch_size",
            True,
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            "/tmp/x cannot be used: the disk is full",
            "Free space on that disk",
            True,
        ),
        (MemoryError(), "'cache' failed on its workers: MemoryError", "micro_batch_size", True),
        (
            ZeroDivisionError("division by zero"),
            "ZeroDivisionError: division",
            "lines above",
            False,
        ),
    ],
)
def test_a_final_error_is_one_sentence_and_a_fix(
    error: Exception, problem: str, fix: str, is_clear: bool
) -> None:
    found, clear = describe_failure(error, "The stage 'cache' failed on its workers")
    assert problem in found.problem
    assert "\n" not in found.problem
    assert fix in found.fix
    assert clear == is_clear
    ours = KdscaleError("a", "b")
    assert describe_failure(ours, "A worker could not start") == (ours, True)
