"""The distill stage of a loaded student: published weights, losses, the student before training.

On one rank, on two, sharded, and resumed at another size.
"""

from contextlib import suppress
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kdscale.cache.read.reader import CacheReader
from kdscale.distill.curriculum import make_sampler
from kdscale.distill.worker import StudentRecipe
from kdscale.distributed.rank import current_rank
from kdscale.models.hf_folder import read_marker
from kdscale.store import open_store
from kdscale.types import labels_of
from tests.ranks import run_ranks
from tests.unit.distill.loaded import (
    STEPS,
    Place,
    distil_config,
    distil_job,
    logged,
    make_causal,
    make_place,
)

pytestmark = pytest.mark.dist
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SAVED = 2  # the step of the only checkpoint that an interrupted training has
STILL = {"distill__training__optimiser": {"learning_rate": 1e-30, "weight_decay": 0.0}}
NARROW = {"layers": [2, 0], "width": {"intermediate_size": 20, "calibration_sequences": 3}}


class Killed(BaseException):
    """Ends a training as a signal would."""


def distil(
    place: Place, name: str, dies: bool = False, baseline: bool = False, **changes: Any
) -> None:
    """Run the stage on this rank; a rank that `dies` does so in the step after a checkpoint."""
    student = {"load": str(place.folder / "model"), **changes.pop("student", {})}
    config = distil_config(place.folder / name, student, **changes)
    own = StudentRecipe.compute_loss

    def compute_loss(recipe: StudentRecipe, model: Any, batch: Any, step: int) -> Any:
        if dies and step == SAVED:
            raise Killed
        return own(recipe, model, batch, step)

    with suppress(Killed), mock.patch.object(StudentRecipe, "compute_loss", compute_loss):
        distil_job(config, place, ("student", "baseline")[: 1 + baseline]).run()


def distil_all(place: Place, jobs: list[dict[str, Any]]) -> None:
    """One stage after the other: starting processes is the slow part."""
    for job in jobs:
        distil(place, **job)


def stage(number: int) -> dict[str, Any]:
    return {"distill__training__zero": {"stage": number}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return the place after all trainings."""
    place = make_place(tmp_path_factory.mktemp("load"))
    size = place.data.vocab_size + 7
    make_causal(place.folder / "model", "llama", size, **LLAMA, tie_word_embeddings=True)
    two = [
        {"name": "two-0"},
        {"name": "two-3", "baseline": True, **stage(3)},
        *({"name": f"cut-{number}", "dies": True, **stage(number)} for number in (0, 3)),
        {"name": "still-3", **stage(3), **STILL},
        {"name": "narrow", "student": NARROW, **stage(3)},
    ]
    run_ranks(distil_all, 2, place, two)
    one = [
        {"name": "one", "baseline": True},
        {"name": "cut-0", **stage(3)},
        {"name": "cut-3"},
        {"name": "still", "baseline": True, **STILL},
        {"name": "narrow-one", "student": NARROW},
    ]
    run_ranks(distil_all, 1, place, one)
    return place


def losses(place: Place, name: str, which: str = "distill") -> list[float]:
    return [line["train/loss"] for line in logged(place.folder / name, which)]


def test_the_first_loss_is_that_of_the_model_by_transformers_alone(place: Place) -> None:
    model = AutoModelForCausalLM.from_pretrained(place.folder / "model").eval()
    reader = CacheReader(place.cache)
    config = distil_config(place.folder / "x", {"load": "unused"})
    sampler = make_sampler(config.distill, reader, current_rank(), place.data.vocab_size, 0)
    rows = reader.read(sampler.batch(0)).rows
    total, targets = 0.0, 0
    for ids, segments, mask, labels in zip(
        rows.input_ids, rows.segment_ids, rows.loss_mask, labels_of(rows), strict=True
    ):
        for segment in np.unique(segments):
            at = np.flatnonzero(segments == segment)
            with torch.no_grad():
                logits = model(torch.from_numpy(ids[at])[None].long()).logits[0]
            # Ids that only pad the embedding get no probability.
            each = torch.nn.functional.cross_entropy(
                logits[:, : place.data.vocab_size],
                torch.from_numpy(labels[at]).long(),
                reduction="none",
            )
            total += float(each[torch.from_numpy(mask[at])].double().sum())
            targets += int(mask[at].sum())
    for which in ("distill", "baseline"):
        first = logged(place.folder / "one", which)[0]
        assert first["train/ce_loss"] == pytest.approx(total / targets, rel=1e-5)
    assert losses(place, "one") != losses(place, "one", "baseline")


@pytest.mark.parametrize("name", ["still", "still-3"])
def test_a_student_that_learns_nothing_is_published_as_it_was_loaded(
    place: Place, name: str
) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(place.folder / "model").eval()
    ids = torch.arange(30)[None]
    for model in ("student", "baseline")[: 1 + (name == "still")]:
        found = AutoModelForCausalLM.from_pretrained(place.folder / name / model).eval()
        assert torch.equal(found(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("name", ["two-0", "two-3", "cut-0", "cut-3"])
def test_ranks_stages_and_resumes_give_the_losses_of_one_rank(place: Place, name: str) -> None:
    for which in ("distill", "baseline")[: 1 + (name == "two-3")]:
        expected = losses(place, "one", which)
        assert len(expected) == STEPS
        assert expected[-1] < expected[0]
        assert losses(place, name, which) == pytest.approx(expected, rel=1e-4)


def test_the_student_before_training_is_the_loaded_one_where_it_is(place: Place) -> None:
    for name in ("one", "two-3", "cut-0"):
        found = read_marker(open_store(str(place.folder / name / "before")))
        assert found is not None
        assert found.source == str(place.folder / "model")
        assert found.fingerprint == "before"
        assert [each.name for each in (place.folder / name / "before").iterdir()] == [
            "kdscale.json"
        ]


def test_a_student_cut_from_it_is_kept_as_it_was_before_training(place: Place) -> None:
    one, two = (
        AutoModelForCausalLM.from_pretrained(place.folder / name / "before").state_dict()
        for name in ("narrow-one", "narrow")
    )
    whole = AutoModelForCausalLM.from_pretrained(place.folder / "model").state_dict()
    assert torch.equal(one["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])
    query = "model.layers.{}.self_attn.q_proj.weight"
    assert torch.equal(one[query.format(0)], whole[query.format(2)])
    assert one["model.layers.1.mlp.up_proj.weight"].shape == (20, 24)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert losses(place, "narrow") == pytest.approx(losses(place, "narrow-one"), rel=1e-4)
