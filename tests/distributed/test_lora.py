"""Adapters over two real gloo ranks: every ZeRO stage against one rank, and resuming anywhere."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kdscale.config.lora import LoraConfig
from kdscale.distributed.rank import current_rank
from kdscale.models.adapter_folder import WEIGHTS
from kdscale.models.head import ModelWithHead
from kdscale.models.load import load_model
from kdscale.models.lora import Base, add_adapters
from tests.distributed import test_training as whole
from tests.distributed.test_training import STEPS, every_parameter_partitioned, training
from tests.ranks import run_ranks

LORA = LoraConfig(r=4, alpha=8)
STAGES = (0, 1, 2, 3)
# (ZeRO stage that two ranks saved at, stage that one continues at)
FROM_TWO = ((0, 3), (2, 0), (3, 2))


def train(
    folder: str, name: str, stage: int, checkpoints: str = "", lora: LoraConfig = LORA, **more: Any
) -> dict[str, Any]:
    """Train adapters and write them to `name`; return the losses, see `test_training.run`."""
    made: list[Any] = []

    def wrap(model: Any, vocab_size: int) -> ModelWithHead:
        made.extend([model, add_adapters(model, lora, seed=3)])
        return ModelWithHead(model, vocab_size)

    def make(*arguments: Any) -> Any:
        made.append(backend := make_backend(*arguments))
        return backend

    make_backend = whole.make_backend
    with mock.patch.multiple(whole, make_backend=make, ModelWithHead=wrap):
        where = f"{folder}/{checkpoints}" if checkpoints else None
        build = partial(load_model, f"{folder}/model")
        found = whole.run(training(stage, **more), build, where, until=3)
    model, adapters, backend = made
    values = backend.trained_values()
    if current_rank().rank == 0:
        adapters.save(Path(folder) / name, model, values, Base(f"{folder}/model"))
    found["changed"] = changed(folder, model, stage)
    return found


def changed(folder: str, model: Any, stage: int) -> list[str]:
    """Return the names of the frozen weights that are not those of the start, bit for bit."""
    start = load_model(f"{folder}/model").state_dict()
    frozen = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    assert {name for name, _ in load_model(f"{folder}/model").named_parameters()} == set(frozen)
    found = []
    for name, parameter in frozen.items():
        gathered: Any = nullcontext()
        if stage == 3:
            import deepspeed

            gathered = deepspeed.zero.GatheredParameters([parameter])
        with gathered:
            if not torch.equal(parameter, start[name]):
                found.append(name)
    return found


def one_rank(folder: str) -> dict[str, Any]:
    return {
        name: train(folder, name, stage, f"steps-{name}")
        for name, stage in (("one-0", 0), ("one-3", 3))
    }


def two_ranks(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stage in STAGES:
        name = f"two-{stage}"
        # ZeRO-3 keeps small parameters whole on every rank, so all of a small model: not here.
        with every_parameter_partitioned():
            found[name] = train(folder, name, stage, f"steps-{name}")
            found[f"{name} again"] = train(folder, f"{name}-again", stage, f"steps-{name}")
        if stage in (0, 3):
            other = f"{name} recomputed"
            found[other] = train(folder, "recomputed", stage, activation_checkpointing=True)
    for saved, stage in ((3, 1), (0, 3)):
        name = f"two-{stage} from one"
        found[name] = train(folder, f"two-{stage}-from-one", stage, f"steps-one-{saved}")
    noisy = LORA.model_copy(update={"dropout": 0.3})
    for name in ("noisy", "noisy again"):
        found[name] = train(folder, name.replace(" ", "-"), 0, "steps-noisy", noisy)
    return found


def one_from_two(folder: str) -> dict[str, Any]:
    return {
        f"one from two-{saved}": train(folder, f"one-from-two-{saved}", stage, f"steps-two-{saved}")
        for saved, stage in FROM_TWO
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("adapters")
    whole.make().save_pretrained(folder / "model")
    found = dict(run_ranks(one_rank, 1, str(folder))[0])
    found |= run_ranks(two_ranks, 2, str(folder))[0]
    found |= run_ranks(one_from_two, 1, str(folder))[0]
    return found, folder


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / name.replace(" ", "-") / WEIGHTS)
    return found


def assert_close(folder: Path, name: str, other: str) -> None:
    mine, theirs = weights(folder, name), weights(folder, other)
    assert set(mine) == set(theirs)
    assert len(mine) == 2 * 7 * 2
    assert all(value.abs().max() > 1e-3 for value in mine.values())
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], atol=3e-4, rtol=3e-3, msg=key)


@pytest.mark.dist
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_on_two_ranks_gives_the_losses_and_adapters_of_one_rank(
    trained: tuple[dict[str, Any], Path], stage: int
) -> None:
    results, folder = trained
    alone, found = results["one-0"]["losses"], results[f"two-{stage}"]["losses"]
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found == pytest.approx(alone, rel=1e-4)
    assert_close(folder, f"two-{stage}", "one-0")
    assert_close(folder, "one-3", "one-0")


@pytest.mark.dist
@pytest.mark.parametrize("name", [*(f"two-{stage}" for stage in STAGES), "noisy"])
def test_resuming_gives_the_adapters_of_the_undisturbed_training_bit_for_bit(
    trained: tuple[dict[str, Any], Path], name: str
) -> None:
    results, folder = trained
    assert sorted(results[f"{name} again"]["losses"]) == [4, 5, 6]
    mine, theirs = weights(folder, f"{name} again"), weights(folder, name)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.dist
@pytest.mark.parametrize(
    "name",
    ["two-1 from one", "two-3 from one", *(f"one from two-{saved}" for saved, _ in FROM_TWO)],
)
def test_another_world_size_and_stage_gives_the_same_adapters(
    trained: tuple[dict[str, Any], Path], name: str
) -> None:
    results, folder = trained
    assert sorted(results[name]["losses"]) == [4, 5, 6]
    assert_close(folder, name, "one-0")


@pytest.mark.dist
@pytest.mark.parametrize("stage", [0, 3])
def test_recomputing_activations_changes_no_loss(
    trained: tuple[dict[str, Any], Path], stage: int
) -> None:
    plain, recomputed = (trained[0][f"two-{stage}{suffix}"] for suffix in ("", " recomputed"))
    assert recomputed["losses"] == plain["losses"]
    assert recomputed["norms"] == plain["norms"]


@pytest.mark.dist
def test_frozen_weights_stay_and_checkpoints_hold_adapters_alone(
    trained: tuple[dict[str, Any], Path],
) -> None:
    results, folder = trained
    assert {name: each["changed"] for name, each in results.items() if each["changed"]} == {}
    files = sorted(folder.glob("steps-*/*/state-*.safetensors"))
    assert len(files) >= 2 + 2 * len(STAGES)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            assert all(".lora_A." in name or ".lora_B." in name for name in names), names
            assert names
