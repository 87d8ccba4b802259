"""From hidden states to encoded positions: the same as from the model's own logits."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kdscale.cache.codecs import make_codec
from kdscale.config.cache import VaroptCodec
from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.models.forward import RowTensors, target_logits
from kdscale.teacher import states
from kdscale.teacher.states import encode_states, place_captured, states_of, whole_head
from kdscale.train.throughput import DeviceTimer
from kdscale.types import Head
from tests.architectures import tiny_model
from tests.distributed.test_capture import KINDS

CPU = torch.device("cpu")
OUTPUTS, LENGTH = 90, 24  # of 96 ids, the others pad the embedding


class Data:
    vocab_size = outputs = OUTPUTS


def place(model: Any) -> torch.nn.Module:
    return place_captured(lambda: model, Rank(0, 1, CPU), ZeroConfig(), Data())


def some_rows() -> RowTensors:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(OUTPUTS, (2, LENGTH), generator=generator)
    mask = torch.rand(ids.shape, generator=generator) < 0.7
    return RowTensors(ids, torch.ones_like(ids), mask, torch.roll(ids, -1, dims=1))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_head_are_the_models_logits_bit_for_bit(kind: str) -> None:
    model, rows = tiny_model(kind), some_rows()
    teacher = place(model)
    found, head = states_of(teacher, rows), whole_head(teacher)
    assert head.weight is not None
    assert found.shape == (int(rows.mask.sum()), head.weight.shape[1])
    with torch.no_grad():
        expected = target_logits(model, rows, OUTPUTS)
    assert torch.equal(head.logits(found), expected)


class OddLlama(LlamaForCausalLM):  # type: ignore[misc]
    """A model whose logits no config describes."""

    def forward(self, *arguments: Any, **more: Any) -> Any:
        found = super().forward(*arguments, **more)
        found.logits = found.logits.sin()
        return found


def test_a_model_that_makes_its_logits_itself_gives_them_where_they_count() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = OddLlama(LlamaConfig(vocab_size=96, num_attention_heads=2, **sizes)).eval()
    rows, seen = some_rows(), []
    teacher = place(model)
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[1]))
    found, head = states_of(teacher, rows), whole_head(teacher)
    assert head.weight is None
    assert seen == [int(rows.mask.sum())]
    with torch.no_grad():
        assert torch.equal(head.logits(found), target_logits(model, rows, OUTPUTS))


def test_a_teacher_with_too_few_ids_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(KdscaleError, match="64"):
        place_captured(
            lambda: tiny_model("gpt2", vocab_size=64), Rank(0, 1, CPU), ZeroConfig(), Data()
        )
    assert place(model) is not None


@pytest.mark.parametrize("positions", [1, 5, 32])
def test_chunks_change_nothing(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 16, generator=generator)
    # Whole numbers: a product of another number of rows may be rounded otherwise.
    head = Head(torch.randint(-2, 3, (96, 16), generator=generator).float(), None, OUTPUTS)
    hidden = (hidden * 8).round() / 8
    labels = torch.randint(OUTPUTS, (32,), generator=generator)
    labels[::7] = -1
    codec = make_codec(VaroptCodec(k=4, head=1), OUTPUTS)
    noise = torch.rand(32, codec.streams, dtype=torch.float64, generator=generator)
    monkeypatch.setitem(states.LOGITS, "cpu", positions * OUTPUTS)
    timer = DeviceTimer(CPU)
    found = encode_states(codec, head, hidden, labels, noise, 2.0, timer)
    logits = hidden.double() @ head.weight[:OUTPUTS].double().T  # type: ignore[index]
    whole = codec.encode(logits.float(), noise, temperature=2.0)
    for name in ("payload", "entropy", "log_norm"):
        assert torch.equal(getattr(found.encoded, name), getattr(whole, name))
    exact = -(logits / 2).log_softmax(-1)[torch.arange(32), labels].numpy()
    known = (labels >= 0).numpy()
    assert 0 < known.sum() < 32
    np.testing.assert_allclose(found.nll.numpy()[known], exact[known], rtol=1e-5)
    assert found.nll.isnan().numpy().tolist() == (~known).tolist()
    assert timer.seconds > 0
