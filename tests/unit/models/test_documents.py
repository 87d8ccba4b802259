"""Documents of sequences, known on the host: what is picked, and that transformers does not ask."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import masking_utils

from kdscale.models.documents import Documents, document_positions
from kdscale.models.forward import RowTensors, attention_inputs, row_tensors, target_logits
from kdscale.types import Rows
from tests.alone import rows as alone_rows
from tests.architectures import VOCAB, tiny_model

CPU = torch.device("cpu")
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [1, 2, 3, 0, 0, 0]], np.int32)


def some_rows() -> Rows:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 9, SEGMENTS.shape, dtype=np.int32)
    mask = (SEGMENTS != 0) & (generator.random(SEGMENTS.shape) < 0.6)
    digests = np.zeros((len(ids), 16), np.uint8)
    return Rows(digests, ids, SEGMENTS, mask, np.ones(len(ids)))


def test_documents_start_where_positions_do() -> None:
    found = Documents.of(SEGMENTS, CPU)
    assert found.bounds.tolist() == [0, 3, 6, 12, 13, 14, 18]
    assert (found.longest, found.packed) == (6, True)
    positions = document_positions(torch.from_numpy(SEGMENTS))
    assert (positions.flatten() == 0).nonzero().flatten().tolist() == found.bounds[:-1].tolist()
    asked = Documents.ask(torch.from_numpy(SEGMENTS).long())
    assert torch.equal(asked.bounds, found.bounds)
    assert asked[1:] == found[1:]
    assert not Documents.of(SEGMENTS[1:2], CPU).packed


def test_positions_that_count_are_picked_as_the_mask_would() -> None:
    valid = np.array([True, False, True])
    made = row_tensors(some_rows(), CPU, valid)
    looked = made.with_mask(made.mask)
    assert looked.at is None
    assert made.targets == looked.targets == int((some_rows().loss_mask & valid[:, None]).sum())
    values = torch.randn(*SEGMENTS.shape, 4, requires_grad=True)
    assert torch.equal(made.pick(values), values[made.mask])
    assert torch.equal(made.pick(made.labels), looked.pick(made.labels))
    gradients = [torch.autograd.grad(r.pick(values).square().sum(), values) for r in (made, looked)]
    assert torch.equal(gradients[0][0], gradients[1][0])


@pytest.fixture
def never_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where transformers looks whether the rows are packed."""

    def ask(positions: torch.Tensor) -> None:
        raise AssertionError("the device was asked")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", ask)
    yield
    assert masking_utils.find_packed_sequence_indices is ask


@pytest.mark.usefixtures("never_asked")
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2", "llama4_text"])
def test_a_forward_of_known_documents_asks_nothing(kind: str) -> None:
    ids, segments, _ = alone_rows()
    model = tiny_model(kind)
    for part in (slice(0, 3), slice(1, 3)):
        known = Documents.of(segments[part].numpy(), CPU)
        mask = segments[part] != 0
        rows = RowTensors(ids[part], segments[part], mask, ids[part], documents=known)
        with torch.no_grad():
            assert target_logits(model, rows, VOCAB).isfinite().all()


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt_oss", "llama4_text"])
def test_the_masks_are_those_that_transformers_finds_by_itself(kind: str) -> None:
    _, segments, _ = alone_rows()
    model = tiny_model(kind)
    found = attention_inputs(model, segments, Documents.of(segments.numpy(), CPU))
    positions = document_positions(segments)
    make = getattr(model, "create_masks_for_generate", masking_utils.create_masks_for_generate)
    embeddings = torch.empty(*segments.shape, 1)
    expected = make(model.config, embeddings, None, None, position_ids=positions)
    assert torch.equal(found["position_ids"], positions)
    masks = found["attention_mask"]
    if isinstance(expected, torch.Tensor):
        masks, expected = {"all": masks}, {"all": expected}
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], expected[name]) for name in expected)
