"""Encoders, decoders and the figures of an evaluation on fake CUDA tensors."""

import pytest
import torch

from kdscale.cache.codecs import kernels, make_codec, uniforms
from kdscale.evaluate.metrics import LanguageModelSums
from kdscale.evaluate.temperature import TemperatureSums
from tests.gpu.fake_cuda import CUDA, Record
from tests.gpu.test_losses import CODECS

SEQUENCES, LENGTH, VOCAB = 4, 300, 128_256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CODECS)
def test_codecs(record: Record, name: str, dtype: torch.dtype) -> None:
    codec = make_codec(CODECS[name], VOCAB)
    ids = torch.empty(SEQUENCES, 16, dtype=torch.uint8, device=CUDA)
    noise = uniforms(0, ids, LENGTH, codec.streams).flatten(0, 1)
    logits = torch.empty(SEQUENCES * LENGTH, VOCAB + 64, dtype=dtype, device=CUDA)
    encoded = codec.encode(logits, noise, temperature=2.0)
    assert encoded.payload.shape == (len(logits), codec.bytes_per_position)
    assert {each.device.type for each in vars(encoded).values()} == {"cuda"}
    # Whether all logits have a distribution is asked once.
    assert record.syncs.total() <= 1
    record.clear()
    for value in vars(codec.decode(encoded.payload)).values():
        assert value is None or value.device.type == "cuda"
    assert not record.syncs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_varopt_with_triton(
    record: Record, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: device == "cuda")
    codec = make_codec(CODECS["varopt"], VOCAB)
    noise = torch.empty(SEQUENCES * LENGTH, codec.streams, dtype=torch.float64, device=CUDA)
    logits = torch.empty(SEQUENCES * LENGTH, VOCAB + 64, dtype=dtype, device=CUDA)
    record.clear()
    encoded = codec.encode(logits, noise, temperature=2.0)
    assert encoded.payload.shape == (len(logits), codec.bytes_per_position)
    assert {each.device.type for each in vars(encoded).values()} == {"cuda"}
    assert "varopt" in {each.name for each in record.operations}
    # Nothing of the logits' size is made.
    made = [
        each.nbytes for every in record.operations if not every.is_view for each in every.outputs
    ]
    assert max(made) < logits.nbytes / 100
    assert record.syncs.total() == 1


def test_language_model_figures(record: Record) -> None:
    positions, rows = 300, 10
    logits = torch.empty(positions, VOCAB, device=CUDA)
    labels = torch.empty(positions, dtype=torch.int64, device=CUDA)
    sums = LanguageModelSums(CUDA, rows, 0.9)
    teacher, at = torch.empty_like(logits), torch.empty_like(labels)
    record.clear()
    sums.update(logits, labels, teacher, at)
    TemperatureSums(CUDA).update(logits, labels)
    assert not record.syncs
