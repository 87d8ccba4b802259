"""Whole micro-batches on fake CUDA tensors: of distillation, as its loop runs them, of capture."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.rows import CachedRows
from kdscale.config import RunConfig
from kdscale.distill.batches import MicroBatch, to_device
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distill.targets import OnlineTargets, _forward
from kdscale.distributed.rank import Rank
from kdscale.models.forward import RowTensors, row_tensors, target_logits
from kdscale.models.head import ModelWithHead
from kdscale.train.backends.ddp import DdpBackend
from kdscale.types import Rows
from tests.gpu.fake_cuda import CUDA, Record
from tests.runs import tiny_config
from tests.small_llama import llama_config

VOCAB, SEQUENCES, LENGTH = 512, 3, 64


def rows() -> Rows:
    """Return packed rows, two documents each."""
    generator = np.random.default_rng(0)
    segments = np.ones((SEQUENCES, LENGTH), np.int32)
    segments[:, LENGTH // 2 :] = 2
    ids = generator.integers(0, VOCAB, (SEQUENCES, LENGTH)).astype(np.int32)
    samples = generator.integers(0, 255, (SEQUENCES, 16)).astype(np.uint8)
    return Rows(samples, ids, segments, np.ones((SEQUENCES, LENGTH), bool), np.ones(SEQUENCES))


def config(**distill: Any) -> RunConfig:
    raw = tiny_config(Path("corpus"), "output")
    raw["distill"] |= distill
    return RunConfig.model_validate(raw)


def model(dtype: torch.dtype) -> Any:
    shape = llama_config(VOCAB, LENGTH, width=64, layers=2)
    with torch.device(CUDA):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype)


def micro_batch(codec: Any) -> MicroBatch:
    payload = np.zeros((SEQUENCES, LENGTH, codec.bytes_per_position), np.uint8)
    means = np.zeros(SEQUENCES, np.float32)
    cached = CachedRows(rows(), payload, means, means)
    return to_device(cached, np.ones(SEQUENCES, bool), CUDA)


class OnDevice(ModelWithHead):
    """A model whose parameters are on the device; fake ones cannot be moved."""

    def to(self, *_: Any, **__: Any) -> Self:
        return self


def student(made: RunConfig) -> DdpBackend:
    wrapped = OnDevice(model(torch.float32), VOCAB)
    return DdpBackend(wrapped, made.distill.training.optimiser, Rank(0, 1, CUDA))


class FixedTeacher:
    """The online teacher of a micro-batch, without the folder that one is loaded from."""

    def __init__(self) -> None:
        self._model = ModelWithHead(model(torch.bfloat16), VOCAB)

    @torch.no_grad()
    def targets(self, rows: RowTensors, temperature: float) -> OnlineTargets:
        hidden, _, head = _forward(self._model, rows, (), False)
        return OnlineTargets(head, rows.pick(hidden), temperature, {})


def test_copies_to_the_device(record: Record) -> None:
    micro_batch(make_codec(config().cache.codec, VOCAB))
    assert not record.syncs


@pytest.mark.parametrize("loss", ["distillation", "labels"])
def test_training(record: Record, loss: str) -> None:
    made = config()
    codec = make_codec(made.cache.codec, VOCAB)
    backend, batch = student(made), micro_batch(codec)
    compute = LabelsLoss() if loss == "labels" else DistillationLoss(made, codec, None)
    record.clear()
    with backend.micro_batch(last=True):
        objective, parts = backend.model(compute, batch, 0)
    assert objective.dtype == torch.float32
    assert {each.device.type for each in parts.values()} == {"cuda"}
    assert record.products(torch.bfloat16)
    assert record.products(torch.float32) == []
    assert not record.syncs


def test_training_beside_an_online_teacher(record: Record) -> None:
    made = config(targets="online")
    codec = make_codec(made.cache.codec, VOCAB)
    backend, batch, teacher = student(made), micro_batch(codec), FixedTeacher()
    compute = DistillationLoss(made, codec, teacher)  # type: ignore[arg-type]  # see FixedTeacher
    record.clear()
    with backend.micro_batch(last=True):
        backend.model(compute, batch, 0)
    assert record.products(torch.float32) == []
    assert not record.syncs


def test_capture(record: Record) -> None:
    made = config()
    codec = make_codec(made.cache.codec, VOCAB)
    teacher, batch = model(torch.bfloat16), row_tensors(rows(), CUDA)
    samples = torch.from_numpy(rows().sample_ids).to(CUDA)
    record.clear()
    logits = target_logits(teacher, batch, VOCAB)
    assert logits.dtype == torch.bfloat16
    noise = uniforms(0, samples, LENGTH, codec.streams).flatten(0, 1)
    codec.encode(logits, noise)
    assert record.products(torch.float32) == []
    # Whether all logits have a distribution is asked once, when they are encoded.
    assert record.syncs.total() == 1
