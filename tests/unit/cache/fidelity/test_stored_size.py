import numpy as np
import pyarrow as pa
import pytest
import torch

from kdscale.cache.codecs import make_codec
from kdscale.cache.fidelity.stored_size import StoredSize
from kdscale.cache.format.packing import Packing
from kdscale.cache.format.prior import count_prior
from kdscale.config.cache import FullCodec, TopkCodec, VaroptCodec

VOCAB, COUNT = 3000, 300
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(COUNT, VOCAB, generator=GENERATOR) * 3
CONTEXTS = torch.randint(VOCAB, (COUNT,), generator=GENERATOR).numpy()
PRIOR = count_prior([(CONTEXTS[None], np.ones((1, COUNT), np.bool_))], VOCAB)


def fill(config: VaroptCodec | TopkCodec | FullCodec) -> tuple[StoredSize, np.ndarray]:
    """In three parts."""
    codec = make_codec(config, VOCAB)
    noise = torch.rand(COUNT, codec.streams, generator=GENERATOR, dtype=torch.float64)
    payload = codec.encode(LOGITS, noise).payload.numpy()
    rest = StoredSize(codec, PRIOR)
    for part in np.array_split(np.arange(COUNT), 3):
        rest.add(CONTEXTS[part], payload[part])
    return rest, payload


def test_sampled_ids_are_packed_as_one_block() -> None:
    rest, payload = fill(VaroptCodec(k=6, head=3))
    codec = make_codec(VaroptCodec(k=6, head=3), VOCAB)
    packed = Packing(codec, PRIOR).pack(CONTEXTS, payload)  # type: ignore[arg-type]  # it samples
    assert rest.bytes_per_position() == len(packed) / COUNT


def test_others_are_compressed_as_a_column() -> None:
    rest, payload = fill(TopkCodec(k=4))
    expected = pa.Codec("zstd", 1).compress(payload.tobytes(), asbytes=True)
    assert rest.bytes_per_position() == len(expected) / COUNT


def test_large_payloads_are_stored_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = fill(FullCodec())
    monkeypatch.setattr("kdscale.cache.fidelity.stored_size._ENOUGH", 1 << 16)
    parts, payload = fill(FullCodec())
    assert parts._payload == []
    assert parts.bytes_per_position() == pytest.approx(whole.bytes_per_position(), rel=0.01)
    assert 0.5 * payload.shape[1] < whole.bytes_per_position() < payload.shape[1]
