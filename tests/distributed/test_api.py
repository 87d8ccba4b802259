"""A loop under DDP and a DistillationTrainer under DDP and ZeRO: two gloo ranks against one."""

from functools import partial
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.ranks import run_ranks
from tests.training import (
    Losses,
    assert_equal,
    by_kdscale,
    by_loop,
    by_trainer,
    make_trainer,
    plant,
    student,
)
from tests.unit.cache.planted import planted_rows

HALF, SEQUENCES = 4, 23


def zero(stage: int) -> dict[str, Any]:
    """Return TrainingArguments of DeepSpeed; at stage 3 even small parameters are partitioned."""
    import deepspeed

    # An all-reduce for inference on CPUs, which would be compiled for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": "auto",
                "betas": "auto",
                "eps": "auto",
                "weight_decay": "auto",
                "torch_adam": True,
            },
        },
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    return {"deepspeed": config}


def all_ways(cache: str, folder: str) -> dict[str, Any]:
    """Train in every way on this rank; a group of ranks is slow to start."""
    found: dict[str, Any] = {
        "kdscale": by_kdscale(cache),
        "loop": by_loop(cache),
        "trainer": by_trainer(cache, f"{folder}/ddp", save_strategy="steps", save_steps=HALF),
        "small": by_trainer(
            cache,
            f"{folder}/small",
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
        ),
    }
    for name, place in (("resumed", "ddp"), ("one to two", "one")):
        checkpoint = f"{folder}/{place}/checkpoint-{HALF}"
        found[name] = by_trainer(cache, f"{folder}/{name}", resume=checkpoint)
    trainer = make_trainer(
        cache,
        f"{folder}/evaluated",
        trainer={"eval_dataset": planted_rows(SEQUENCES)},
        per_device_eval_batch_size=2,
    )
    found["evaluated"] = trainer.evaluate()["eval_loss"]
    for stage in (2, 3):
        place = f"{folder}/zero-{stage}"
        saves = {"save_strategy": "steps", "save_steps": HALF}
        # From a file: stage 3 draws random weights in another order.
        load = partial(AutoModelForCausalLM.from_pretrained, f"{folder}/student")
        given = zero(stage)
        found[f"zero {stage}"] = by_trainer(cache, place, model=load(), **saves, **given)
        resume = f"{place}/checkpoint-{HALF}"
        resumed = by_trainer(cache, place, model=load(), resume=resume, **given)
        found[f"zero {stage} resumed"] = resumed
        trainer = make_trainer(
            cache,
            f"{place}/evaluated",
            model=load(),
            trainer={"eval_dataset": planted_rows(SEQUENCES)},
            **given,
        )
        trainer.train()
        found[f"zero {stage} evaluated"] = trainer.evaluate()["eval_loss"]
    return found


def alone(cache: str, folder: str) -> dict[str, Any]:
    """Train on one rank from what two saved."""
    checkpoint = f"{folder}/ddp/checkpoint-{HALF}"
    return {"two to one": by_trainer(cache, f"{folder}/two-to-one", resume=checkpoint)}


def one_rank(cache: str, folder: str) -> dict[str, Any]:
    """Train on one rank, with a checkpoint for two."""
    trainer = make_trainer(
        cache, f"{folder}/alone", trainer={"eval_dataset": planted_rows(SEQUENCES)}
    )
    saves = {"save_strategy": "steps", "save_steps": HALF}
    student().save_pretrained(f"{folder}/student")
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return {
        "trainer": by_trainer(cache, f"{folder}/one", **saves),
        "evaluated": before,
        "evaluated after": trainer.evaluate()["eval_loss"],
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("trainings"))
    cache = tmp_path_factory.mktemp("cache")
    plant(cache)
    (one,) = run_ranks(one_rank, 1, str(cache), folder)
    first, second = run_ranks(all_ways, 2, str(cache), folder)
    (after,) = run_ranks(alone, 1, str(cache), folder)
    return {"one": one, "first": first, "second": second, "after": after}


@pytest.mark.dist
@pytest.mark.parametrize("name", ["kdscale", "loop", "trainer", "small"])
def test_two_ranks_give_the_losses_of_one(results: dict[str, Any], name: str) -> None:
    assert_equal(results["first"][name], results["one"]["trainer"], rel=2e-5)


@pytest.mark.dist
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_gives_the_losses_of_one_rank(results: dict[str, Any], stage: int) -> None:
    assert_equal(results["first"][f"zero {stage}"], results["one"]["trainer"], rel=1e-4)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("resumed", "trainer"),
        ("zero 2 resumed", "zero 2"),
        ("zero 3 resumed", "zero 3"),
    ],
)
def test_a_checkpoint_of_two_ranks_goes_on_exactly(
    results: dict[str, Any], name: str, whole: str
) -> None:
    assert results["first"][name] == results["first"][whole]


@pytest.mark.dist
def test_other_numbers_of_ranks_go_on_with_the_same_batches(results: dict[str, Any]) -> None:
    expected: Losses = results["one"]["trainer"]
    assert_equal(results["first"]["one to two"], expected, rel=2e-5)
    assert_equal(results["after"]["two to one"], expected, rel=2e-5)


@pytest.mark.dist
def test_an_evaluation_on_two_ranks_is_that_of_one(results: dict[str, Any]) -> None:
    found = [results[rank]["evaluated"] for rank in ("first", "second")]
    assert found == pytest.approx([results["one"]["evaluated"]] * 2, rel=1e-6)


@pytest.mark.dist
@pytest.mark.parametrize("stage", [2, 3])
def test_an_evaluation_in_deepspeed_is_that_of_one_rank(
    results: dict[str, Any], stage: int
) -> None:
    expected = results["one"]["evaluated after"]
    assert results["first"][f"zero {stage} evaluated"] == pytest.approx(expected, rel=1e-4)
