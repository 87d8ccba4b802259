"""Two gloo ranks in bfloat16, as GPUs compute: trainings at every stage, resuming, learned maps."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from kdscale.cache.codecs import make_codec
from kdscale.cache.read.reader import CacheReader
from kdscale.config.lora import LoraConfig
from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import current_rank
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import row_tensors, target_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.load import load_model
from kdscale.models.lora import add_adapters
from kdscale.train.backends import zero
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.loop import MicroBatchLoss
from kdscale.types import DenseTargets
from tests.distributed import test_training as whole
from tests.distributed.test_capture import capture_all
from tests.distributed.test_training import STEPS, VOCAB, make, resume, run, training
from tests.ranks import run_ranks
from tests.unit.teacher.test_capture import make_subject

BF16 = torch.bfloat16
STAGES = (0, 1, 2, 3)
# (ZeRO stage that saved, ZeRO stage that goes on)
RESUMED = ((0, 3), (3, 2), (2, 0))
# Of a loss of 4.2, of which rounding moves 5e-4, and a step 2e-3 and more.
CLOSE = 1e-3

own_config = zero._zero_config


def fused_config(*arguments: Any) -> dict[str, Any]:
    """ZeRO with the fused AdamW that GPUs have: CPUs have that kernel, too."""
    found = own_config(*arguments)
    found["optimizer"]["params"]["fused"] = True
    return found


def two_ranks(folder: str) -> dict[str, Any]:
    build = partial(load_model, f"{folder}/model")
    found: dict[str, Any] = {}
    with mock.patch.object(zero, "_zero_config", fused_config):
        for stage in STAGES:
            where = f"{folder}/two-{stage}"
            found[f"{stage}"] = run(training(stage), build, where, until=3)
            found[f"{stage} resumed"] = run(training(stage), build, where, until=3)
    for stage in STAGES:
        found[f"maps {stage}"] = learn_map(stage)
        found[f"sums {stage}"] = add_up(stage)
    return found


def further(folder: str) -> dict[str, Any]:
    """On two ranks: what else a training may have, and other stages from what they saved."""
    build = partial(load_model, f"{folder}/model")
    found: dict[str, Any] = {}
    offloaded = training(2).model_copy(update={"zero": ZeroConfig(stage=2, offload="cpu")})
    with mock.patch.object(zero, "_zero_config", fused_config):
        found["offloaded"] = run(offloaded, build)
    for stage in (0, 3):
        with mock.patch.object(whole, "ModelWithHead", adapted):
            found[f"adapters {stage}"] = run(training(stage), build)
    for saved, stage in RESUMED:
        found[f"{saved} on {stage}"] = resume(folder, "two", saved, stage)
    return found


def adapted(model: Any, vocab_size: int) -> ModelWithHead:
    add_adapters(model, LoraConfig(r=4, alpha=8), seed=3)
    return ModelWithHead(model, vocab_size)


def with_map(stage: int, sizes: tuple[int, int], micro_batches: int) -> Backend:
    """Return a small model with a learned map beside it, as a loss on layers has."""
    torch.manual_seed(0)
    learned = torch.nn.Linear(*sizes, bias=False)

    def wrap(model: Any) -> ModelWithHead:
        return ModelWithHead(model, VOCAB, [learned])

    return make_backend(make, wrap, training(stage), micro_batches, current_rank())


def learn_map(stage: int) -> list[float]:
    """Train model and map for a few steps; return the losses on what the map gives."""
    backend, losses = with_map(stage, (32, 48), 1), []

    def loss(model: ModelWithHead, ids: torch.Tensor, step: int) -> MicroBatchLoss:
        hidden = model.hidden(ids, torch.ones_like(ids)).flatten(0, 1)
        on_layer = (model.projections[0](hidden).float() - 1).square().mean()
        on_labels = head_and_loss(hidden, model.head, ids.flatten()).objective
        return on_layer + on_labels / len(ids), {"layer": on_layer.detach()}

    for step in range(4):
        with backend.micro_batch(last=True):
            value, parts = backend.model(loss, torch.arange(12)[None], step)
            backend.backward(value / 2)
        backend.step(1e-2)
        losses.append(float(parts["layer"]))
    return losses


def add_up(stage: int) -> float:
    """Return the norm of a gradient: 1 of a micro-batch and 1/1024 of each of 64 others.

    Sums in bfloat16, whose numbers above 1 are 1/128 apart, stay at 1.
    """
    count, rank = 65, current_rank()
    backend = with_map(stage, (8, 1), count)

    def loss(model: ModelWithHead, scale: torch.Tensor, step: int) -> MicroBatchLoss:
        ids = torch.arange(4)[None]
        hidden = model.hidden(ids, torch.ones_like(ids)).flatten(0, 1)
        nothing = head_and_loss(hidden, model.head, ids.flatten()).objective * 0
        given = torch.full((1, 8), 8**-0.5, dtype=rank.dtype)
        return model.projections[0](given).float().sum() * scale + nothing, {}

    for index in range(count):
        scale = torch.tensor(1.0 if index == 0 else 1 / 1024)
        with backend.micro_batch(last=index == count - 1):
            value, _ = backend.model(loss, scale, 0)
            backend.backward(value / rank.world_size)
    return backend.step(0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bfloat16")
    make().save_pretrained(found / "model")
    return found


@pytest.fixture(scope="module")
def exact(folder: Path) -> dict[int, float]:
    """Losses of one rank in float32."""
    found: dict[int, float] = run(training(), partial(load_model, folder / "model"))["losses"]
    return found


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = run_ranks(two_ranks, 2, str(folder), dtype=BF16)[0]
    return found


@pytest.fixture(scope="module")
def trained_further(folder: Path, trained: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = run_ranks(further, 2, str(folder), dtype=BF16)[0]
    return found


@pytest.mark.dist
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_losses_of_one_rank_in_float32(
    trained: dict[str, Any], exact: dict[int, float], stage: int
) -> None:
    assert len(exact) == STEPS
    assert trained[str(stage)]["losses"] == pytest.approx(exact, rel=CLOSE)


@pytest.mark.dist
@pytest.mark.slow
def test_an_optimiser_on_the_host_has_the_losses_of_one_on_the_device(
    trained_further: dict[str, Any], exact: dict[int, float]
) -> None:
    assert trained_further["offloaded"]["losses"] == pytest.approx(exact, rel=CLOSE)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_have_the_losses_of_one_rank_in_float32(
    trained_further: dict[str, Any], folder: Path, stage: int
) -> None:
    with mock.patch.object(whole, "ModelWithHead", adapted):
        alone = run(training(), partial(load_model, folder / "model"))["losses"]
    assert trained_further[f"adapters {stage}"]["losses"] == pytest.approx(alone, rel=CLOSE)


@pytest.mark.dist
@pytest.mark.parametrize("stage", STAGES)
def test_resuming_repeats_the_losses(trained: dict[str, Any], stage: int) -> None:
    again = trained[f"{stage} resumed"]["losses"]
    assert again == {step: trained[str(stage)]["losses"][step] for step in (4, 5, 6)}


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(("saved", "stage"), RESUMED)
def test_another_stage_goes_on(
    trained_further: dict[str, Any], exact: dict[int, float], saved: int, stage: int
) -> None:
    found = trained_further[f"{saved} on {stage}"]["losses"]
    assert found == pytest.approx({step: exact[step] for step in (4, 5, 6)}, rel=CLOSE)


@pytest.mark.dist
@pytest.mark.parametrize("stage", STAGES)
def test_a_learned_map_beside_the_model_is_trained(trained: dict[str, Any], stage: int) -> None:
    losses = trained[f"maps {stage}"]
    assert losses[-1] < losses[0] * 0.8


@pytest.mark.dist
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_add_up_in_float32_but_at_stage_1(trained: dict[str, Any], stage: int) -> None:
    expected = 1 if stage == 1 else 1 + 64 / 1024
    # The norm is that before clipping; the map's input is 1 / sqrt(8) in bfloat16.
    assert trained[f"sums {stage}"] == pytest.approx(expected, rel=5e-3)


@pytest.mark.dist
@pytest.mark.slow
def test_a_sharded_teacher_captures_what_a_whole_one_says_in_float32(tmp_path: Path) -> None:
    subject = make_subject(tmp_path, length=64, count=8, stage=3)
    run_ranks(capture_all, 2, [subject.job], dtype=BF16)
    cached = CacheReader(subject.job.cache).read(np.arange(8))
    batch = row_tensors(subject.rows, torch.device("cpu"))
    with torch.no_grad():
        logits = target_logits(subject.model, batch, subject.job.identity["vocab_size"])
    exact = (logits / subject.job.config.cache.temperature).log_softmax(-1)
    codec = make_codec(subject.job.config.cache.codec, logits.shape[1])
    cells = torch.from_numpy(cached.payload.copy()).view(*batch.mask.shape, -1)[batch.mask]
    found = codec.decode(cells)
    assert isinstance(found, DenseTargets)
    kl = (exact.exp() * (exact - found.log_probs)).sum(-1)
    assert exact.std() > 0.05
    assert kl.max() < 1e-3 * exact.var()
