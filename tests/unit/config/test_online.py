"""What the config of an online teacher takes and refuses."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kdscale.config import RunConfig
from kdscale.config.online import OnlineConfig
from tests.runs import tiny_config


def run(targets: str, online: dict[str, Any], **loss: Any) -> RunConfig:
    raw = tiny_config(Path("corpus"), "output")
    raw["distill"] |= {"targets": targets, "online": online, "loss": loss}
    return RunConfig.model_validate(raw)


def test_losses_on_layers_name_what_they_need() -> None:
    assert OnlineConfig().layer_outputs == ()
    assert OnlineConfig.model_validate({"attention": {}}).layer_outputs == ("attention",)
    both = OnlineConfig.model_validate({"attention": {"kind": "mse"}, "hidden": {}})
    assert both.layer_outputs == ("hidden", "attention")


@pytest.mark.parametrize(
    "attention", [{"weight": 0}, {"kind": "cosine"}, {"layers": []}, {"layers": [[1]]}]
)
def test_values_that_mean_nothing_are_refused(attention: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OnlineConfig.model_validate({"attention": attention})


def test_a_online_loss_needs_a_online_teacher() -> None:
    for online in ({"attention": {}}, {"taid": {}}, {"taid": {"start": 0.4}}):
        run("online", online)
        with pytest.raises(ValidationError, match="set targets to `online`"):
            run("cache", online)


def test_taid_is_a_target_of_the_forward_kl_alone() -> None:
    run("online", {"taid": {}}, divergence={"kind": "forward_kl"})
    with pytest.raises(ValidationError, match="drop it, or the divergence 'reverse_kl'"):
        run("online", {"taid": {}}, divergence={"kind": "reverse_kl"})


@pytest.mark.parametrize("taid", [{"start": 1}, {"start": -0.1}, {"alpha": 1.1}, {"beta": 1}])
def test_a_t_that_could_leave_its_range_is_refused(taid: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OnlineConfig.model_validate({"taid": taid})
