"""Two ranks: what a model held is free when it is released, whoever still refers to it."""

import gc
import time
import weakref
from functools import partial
from typing import Any

import pytest
import torch

from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import current_rank
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import compute_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.release import release
from kdscale.models.sharded import place_teacher
from kdscale.train.backends.base import make_backend
from kdscale.train.loop import MicroBatchLoss
from tests.distributed.test_training import VOCAB, make, training
from tests.ranks import run_ranks

STAGES = (0, 1, 2, 3)
# Random states, empty tensors, and what DeepSpeed keeps of a process: less than a layer.
LEFT = 2_000


def elements() -> int:
    """Return the elements of all tensors that stay in this process.

    Gloo's threads hold those of a collective a little longer than it takes.
    """
    found = [_elements()]
    while len(found) < 2 or (found[-1] != found[-2] and len(found) < 50):
        time.sleep(0.1)
        found.append(_elements())
    return found[-1]


def _elements() -> int:
    """Return the elements of all tensors that Python knows in this process."""
    gc.collect()
    found = 0
    for each in gc.get_objects():
        # `isinstance` would ask lazy modules for their class.
        if issubclass(type(each), torch.Tensor) and not each.is_meta:
            found += each.numel()
    return found


def train_and_close(stage: int) -> tuple[Any, int]:
    """Return a reference to a closed back end's model, and the elements that it had."""
    backend = make_backend(
        make, partial(ModelWithHead, vocab_size=VOCAB), training(stage), 1, current_rank()
    )
    ids = torch.arange(24).reshape(2, 12)

    def loss(model: ModelWithHead, ids: torch.Tensor, step: int) -> MicroBatchLoss:
        hidden = model.hidden(ids, torch.ones_like(ids)).flatten(0, 1)
        return head_and_loss(hidden, model.head, ids.flatten()).objective, {}

    for step in range(2):
        with backend.micro_batch(last=True):
            objective, _ = backend.model(loss, ids, step)
            backend.backward(objective)
        backend.step(1e-3)
    before = elements()
    model = backend.model
    backend.close()
    return weakref.ref(model), before


def arms() -> dict[int, tuple[int, int, bool]]:
    """Return (elements with the model, after it, whether the model is gone) of each stage."""
    found, kept = {}, []
    for stage in STAGES:
        start = elements()
        reference, most = train_and_close(stage)
        found[stage] = (most - start, elements() - start, reference() is None)
        kept.append(reference)
    return found


def teacher() -> tuple[int, int]:
    """Return (elements with a sharded teacher, after its release while a caller refers to it)."""
    start = elements()
    engine = place_teacher(make, current_rank(), ZeroConfig(stage=3))
    ids = torch.arange(10)[None]
    with torch.no_grad():
        compute_logits(engine, ids, torch.ones_like(ids), VOCAB)
    most = elements() - start
    release(engine)
    return most, elements() - start


@pytest.fixture(scope="module")
def released() -> list[Any]:
    return run_ranks(both, 2)


def both() -> tuple[dict[int, tuple[int, int, bool]], tuple[int, int]]:
    """One group of ranks: starting processes is the slow part."""
    return arms(), teacher()


@pytest.mark.dist
@pytest.mark.parametrize("stage", STAGES)
def test_a_closed_back_end_holds_nothing(released: list[Any], stage: int) -> None:
    whole = sum(p.numel() for p in make().parameters())
    for of_stage, _ in released:
        held, left, is_gone = of_stage[stage]
        assert held > whole  # weights, and the rank's moments at least
        assert left < LEFT
        # DeepSpeed's own hooks keep the emptied modules of stage 3.
        assert is_gone or stage == 3


@pytest.mark.dist
def test_a_released_teacher_holds_nothing(released: list[Any]) -> None:
    whole = sum(p.numel() for p in make().parameters())
    for _, (held, left) in released:
        assert held >= whole // 2
        assert left < LEFT
