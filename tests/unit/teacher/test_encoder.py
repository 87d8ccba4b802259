"""The thread between forwards and commits: what it stores, and how its errors come out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.codecs import make_codec
from kdscale.cache.writer import committed_units
from kdscale.config.cache import CacheConfig, FullCodec
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.teacher.encoder import Encoder, Forward
from kdscale.types import Rows

VOCAB, LENGTH = 8, 4
CONFIG = CacheConfig(codec=FullCodec())


def rows(count: int) -> Rows:
    ids = np.arange(count * LENGTH, dtype=np.int32).reshape(count, LENGTH) % VOCAB
    mask = np.ones((count, LENGTH), dtype=bool)
    mask[:, -1] = False
    names = np.arange(count * 16, dtype=np.uint8).reshape(count, 16)
    return Rows(names, ids, np.ones_like(ids), mask, np.ones(count))


def encoder(folder: Path) -> Encoder:
    identity = {"format": 1, "codec": make_codec(CONFIG.codec, VOCAB).describe()}
    store = open_store(str(folder))
    device = torch.device("cpu")
    return Encoder(CONFIG, store, identity, vocab_size=VOCAB, seed=0, device=device)


def test_a_unit_is_committed_when_its_last_forward_is_through(tmp_path: Path) -> None:
    with encoder(tmp_path) as thread:
        thread.submit(Forward(3, rows(2), torch.randn(2, LENGTH, VOCAB), last=False))
        thread.submit(Forward(3, rows(2), torch.randn(2, LENGTH, VOCAB), last=True))
        thread.submit(Forward(4, rows(2), torch.randn(2, LENGTH, VOCAB), last=False))
    assert committed_units(open_store(str(tmp_path))) == {3}


def test_an_error_in_the_thread_is_raised_and_never_blocks(tmp_path: Path) -> None:
    broken = torch.full((2, LENGTH, VOCAB), torch.nan)

    def run() -> None:
        with encoder(tmp_path) as thread:
            # More than the queue holds: a thread that had died would block here for ever.
            for unit in range(CONFIG.capture.queue_batches * 3):
                thread.submit(Forward(unit, rows(2), broken, last=True))

    with pytest.raises(KdscaleError, match="NaN or infinity"):
        run()
    assert committed_units(open_store(str(tmp_path))) == set()
