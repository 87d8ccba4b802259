"""A sharded teacher on two ranks: how it is gathered, and that this changes no logit."""

from typing import Any
from unittest import mock

import pytest
import torch

from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import current_rank
from kdscale.models import sharded
from kdscale.models.forward import compute_logits
from kdscale.models.load import build_model, make_config
from kdscale.models.sharded import gather_limits, largest_layer, place_teacher
from tests.distributed.test_training import MODEL, SPECIAL, VOCAB
from tests.ranks import run_ranks

LAYERS, LENGTH = 6, 12
IDS = torch.arange(2 * LENGTH).view(2, LENGTH) % VOCAB


def make_deep() -> Any:
    model = MODEL.model_copy(update={"options": {**MODEL.options, "num_hidden_layers": LAYERS}})
    return build_model(make_config(model, VOCAB, SPECIAL, LENGTH), 0)


def gathers(limits: bool) -> tuple[int, list[Any]]:
    """Return the all-gathers of a forward and its logits, at limits for layers of this size."""
    from deepspeed.comm import comm

    counts = [0]
    whole = make_deep()
    layer = largest_layer(whole)
    # Of a layer as DeepSpeed's own are of one of 0.87e9 elements, in a 70B model.
    found = {
        "stage3_prefetch_bucket_size": layer // 17,
        "stage3_max_live_parameters": int(1.15 * layer),
        "stage3_param_persistence_threshold": 0,
    }
    if limits:
        small = dict.fromkeys(("_LEAST_PREFETCH", "_LEAST_LIVE", "_LARGE_MODEL"), 0)
        with mock.patch.multiple(sharded, _SMALL_PARAMETER=64, **small):
            found = gather_limits(whole)
    with mock.patch.object(sharded, "gather_limits", return_value=found):
        engine = place_teacher(lambda: whole_like(whole), current_rank(), ZeroConfig(stage=3))
    backend = type(comm.cdb)
    for name in ("all_gather_into_tensor", "all_gather_coalesced", "all_gather"):
        mock.patch.object(backend, name, counted(getattr(backend, name), counts)).start()
    with torch.no_grad():
        for _ in range(3):  # the order of the modules is learned at first
            counts[0] = 0
            logits = compute_logits(engine, IDS, torch.ones_like(IDS), VOCAB)
    mock.patch.stopall()
    return counts[0], logits.tolist()


def counted(function: Any, counts: list[int]) -> Any:
    def call(*arguments: Any, **more: Any) -> Any:
        counts[0] += 1
        return function(*arguments, **more)

    return call


def whole_like(model: Any) -> Any:
    """Build the partitioned model with the values of `model`."""
    import deepspeed

    made = type(model)(model.config)
    for mine, theirs in zip(made.parameters(), model.parameters(), strict=True):
        with deepspeed.zero.GatheredParameters([mine], modifier_rank=0), torch.no_grad():
            mine.copy_(theirs)
    return made


def both() -> tuple[tuple[int, list[Any]], tuple[int, list[Any]]]:
    return gathers(limits=False), gathers(limits=True)


@pytest.mark.dist
def test_a_layer_is_gathered_ahead_and_norms_stay_whole() -> None:
    (before, _), (after, logits) = run_ranks(both, 2)[0]
    assert after < before * 0.6
    with torch.no_grad():
        expected = compute_logits(make_deep(), IDS, torch.ones_like(IDS), VOCAB)
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=1e-5)


def test_limits_are_those_of_three_layers_or_deepspeeds_own() -> None:
    model = make_deep()
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert largest_layer(model) == layer
    assert gather_limits(model) == {
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": 0,
    }
    with torch.device("meta"):
        large = torch.nn.ModuleList(torch.nn.Linear(30_000, 20_000) for _ in range(2))
    assert gather_limits(large) == {
        "stage3_prefetch_bucket_size": 600_020_000,
        "stage3_max_live_parameters": 1_800_060_000,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": 100_000,
    }
