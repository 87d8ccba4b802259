"""What the config changes about a model before a back end wraps it, and what it restores."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from kdscale.config.teacher import ModelConfig
from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.losses.fused import head_and_loss
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, make_config
from kdscale.models.modes import computing_dtype
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.backends.zero import _zero_config
from kdscale.train.state import adam_state, count_updates

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


@pytest.mark.parametrize("fused", [None, True])
def test_adams_state_is_what_its_own_first_step_makes(fused: bool | None) -> None:
    made, own = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    for parameter in (made, own):
        parameter.grad = torch.tensor([1.0, -2.0, 3.0])
    optimiser = torch.optim.AdamW([made], fused=fused)
    state = adam_state(optimiser, made, 0)
    assert count_updates(optimiser) == 0
    optimiser.step()
    other = torch.optim.AdamW([own], fused=fused)
    other.step()
    assert torch.equal(made, own)
    assert count_updates(optimiser) == 1
    for name, value in other.state[own].items():
        assert torch.equal(state[name], value)
        assert (state[name].dtype, state[name].device) == (value.dtype, value.device)


def test_a_fused_optimiser_counts_on_the_device_of_the_tensor() -> None:
    # Where a GPU is missing, `meta` stands for another device.
    parameter = torch.nn.Parameter(torch.ones(3, device="meta"))
    optimiser = torch.optim.AdamW([parameter])
    assert adam_state(optimiser, parameter, 2)["step"].device.type == "cpu"
    optimiser.param_groups[0]["fused"] = True
    assert adam_state(optimiser, parameter, 2)["step"].device.type == "meta"


def test_zero_needs_no_compiler_on_any_device() -> None:
    for kind, fused in (("cpu", False), ("cuda", True)):
        training = TrainingConfig(steps=4, global_batch_size=2, zero={"stage": 2, "offload": "cpu"})
        config = _zero_config(training, 1, Rank(0, 1, torch.device(kind)))
        adam = config["optimizer"]["params"]
        assert adam["torch_adam"]
        assert adam.get("fused", False) == fused
        assert not config["zero_force_ds_cpu_optimizer"]


@pytest.mark.parametrize(
    ("weights", "dtype", "products"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_validation_computes_in_the_dtype_of_the_training(
    weights: torch.dtype, dtype: torch.dtype, products: torch.dtype
) -> None:
    model = torch.nn.Linear(4, 4, dtype=weights)
    worker = Rank(0, 1, torch.device("cpu"))
    with mock.patch.object(Rank, "dtype", dtype), computing_dtype(model, worker):
        assert model(torch.ones(1, 4, dtype=weights)).dtype == products
        assert torch.is_autocast_enabled("cpu") == (weights != dtype)
