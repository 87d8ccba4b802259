"""What the config changes about a model before a back end wraps it, and what it restores."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.config.teacher import ModelConfig
from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.losses.fused import head_and_loss
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, make_config
from kdscale.train.backends.base import Backend, make_backend

VOCAB = 32
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
}


def make(architecture: str, seed: int = 0, **fields: Any) -> Backend:
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = ModelConfig(architecture=architecture, options=OPTIONS[architecture])
    training = TrainingConfig(steps=4, global_batch_size=2, **fields)
    return make_backend(
        lambda: build_model(make_config(config, VOCAB, special, 16), seed),
        partial(ModelWithHead, vocab_size=VOCAB),
        training,
        1,
        Rank(0, 1, torch.device("cpu")),
    )


def step(backend: Backend) -> float:
    """Make one update on fixed sequences; return the loss before it."""
    ids = torch.arange(24).view(2, 12)

    def loss_of(model: ModelWithHead) -> torch.Tensor:
        hidden = model.hidden(ids, torch.ones_like(ids))[:, :-1].flatten(0, 1)
        labels = torch.roll(ids, -1, dims=1)[:, :-1].flatten()
        return head_and_loss(hidden, model.head, labels).objective

    with backend.micro_batch(last=True):
        loss = backend.model(loss_of)
        backend.backward(loss / 22)
    backend.step(1e-2)
    return float(loss.detach())


def test_dropout_of_the_config_is_set_and_left_alone_without_one() -> None:
    rates = {}
    for rate in (None, 0.0, 0.4):
        model = make("gpt2", dropout=rate).model
        rates[rate] = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {None: {0.1}, 0.0: {0.0}, 0.4: {0.4}}


def test_what_the_architecture_cannot_do_is_refused() -> None:
    with pytest.raises(KdscaleError, match="'mamba' has no dropout"):
        make("mamba", dropout=0.1)


def test_a_restored_state_goes_on_exactly_as_the_saved_one(tmp_path: Path) -> None:
    first = make("gpt2", dropout=0.0)
    for _ in range(3):
        step(first)
    first.save(tmp_path)
    # Another start, with an update that leaves moments behind: nothing of it may stay.
    second = make("gpt2", seed=1, dropout=0.0)
    step(second)
    second.load(tmp_path)
    expected = [step(first) for _ in range(3)]
    assert [step(second) for _ in range(3)] == expected
    assert expected[0] > expected[1] > expected[2]
    mine, theirs = (dict(b.model.named_parameters()) for b in (second, first))
    for name, parameter in theirs.items():
        assert torch.equal(mine[name], parameter), name
