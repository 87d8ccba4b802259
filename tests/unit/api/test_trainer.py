"""The Trainer: accumulation, resuming, evaluation, adapters, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import kdscale
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.models.forward import row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.train.label_loss import label_loss
from tests.training import (
    MICRO,
    STEP,
    STEPS,
    Losses,
    assert_equal,
    by_kdscale,
    by_trainer,
    make_trainer,
    plant,
    student,
)
from tests.unit.cache.planted import VOCAB, Planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cache(planted: Planted) -> str:
    return planted.store.url


@pytest.fixture(scope="module")
def whole(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    return by_trainer(cache, str(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("size", [1, STEP])
def test_accumulation_changes_nothing(cache: str, whole: Losses, tmp_path: Path, size: int) -> None:
    found = by_trainer(
        cache,
        str(tmp_path),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=STEP // size,
    )
    assert_equal(found, whole, rel=1e-5)


# 23 sequences are 6 steps of 4: one checkpoint is inside of an epoch, one at its end, one behind.
@pytest.mark.parametrize("step", [2, 6, 7])
def test_a_checkpoint_goes_on_with_the_same_batches(
    cache: str, whole: Losses, tmp_path: Path, step: int
) -> None:
    by_trainer(cache, str(tmp_path), save_strategy="steps", save_steps=step)
    resumed = by_trainer(cache, str(tmp_path), resume=str(tmp_path / f"checkpoint-{step}"))
    assert resumed == whole


def test_a_checkpoint_is_a_folder_of_transformers(cache: str, tmp_path: Path) -> None:
    trainer = make_trainer(cache, str(tmp_path), save_strategy="steps", save_steps=STEPS)
    trainer.train()
    folder = tmp_path / f"checkpoint-{STEPS}"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(10)[None]
    expected = trainer.model(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_checkpoint_of_another_order_is_refused(cache: str, tmp_path: Path) -> None:
    by_trainer(cache, str(tmp_path), save_strategy="steps", save_steps=4)
    there = str(tmp_path / "checkpoint-4")
    with pytest.raises(KdscaleError, match="seed: 5, here 6"):
        by_trainer(cache, str(tmp_path), resume=there, data_seed=6)
    with pytest.raises(KdscaleError, match="4 sequences a step, now there are 8"):
        by_trainer(cache, str(tmp_path), resume=there, gradient_accumulation_steps=4)
    (tmp_path / "checkpoint-4" / "kdscale.json").unlink()
    with pytest.raises(KdscaleError, match=r"no checkpoint of a DistillationTrainer"):
        by_trainer(cache, str(tmp_path), resume=there)


def test_epochs_are_whole_steps(cache: str, tmp_path: Path, whole: Losses) -> None:
    trainer = make_trainer(cache, str(tmp_path), max_steps=-1, num_train_epochs=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2 * math.ceil(23 / STEP)
    assert lines[5]["epoch"] == 1.0
    assert lines[-1]["epoch"] == 2.0
    assert [line["loss"] for line in lines[:STEPS]] == [step["loss"] for step in whole]


def test_a_curriculum_is_that_of_a_run(cache: str, tmp_path: Path) -> None:
    curriculum = {"difficulty": "entropy", "warmup_share": 0.5, "pacing": "root"}
    found = by_trainer(cache, str(tmp_path), trainer={"curriculum": curriculum})
    assert_equal(found, by_kdscale(cache, **curriculum), rel=1e-6)


def test_the_weight_may_change_over_the_steps(cache: str, tmp_path: Path, whole: Losses) -> None:
    weight = {"kind": "linear", "start": 1.0, "end": 0.0}
    found = by_trainer(cache, str(tmp_path), trainer={"kd_weight": weight})
    assert found[-1]["loss"] == pytest.approx(found[-1]["ce_loss"], rel=1e-6)
    assert found[0]["ce_loss"] == pytest.approx(whole[0]["ce_loss"], rel=1e-6)
    assert found[0]["loss"] > found[0]["kl"]


def test_logged_values_are_means_over_the_logged_steps(
    cache: str, tmp_path: Path, whole: Losses
) -> None:
    found = by_trainer(cache, str(tmp_path), logging_steps=4)
    for line, steps in zip(found, (whole[:4], whole[4:]), strict=True):
        for name in ("loss", "ce_loss", "kl"):
            mean = sum(step[name] for step in steps) / 4
            assert line[name] == pytest.approx(mean, rel=1e-5)


def label_mean(model: Any, rows: Any) -> float:
    """Return the mean loss on labels, as a validation of kdscale sums it up."""
    batch = row_tensors(rows, Rank(0, 1, torch.device("cpu")).device)
    with torch.no_grad():
        total = label_loss(ModelWithHead(model, VOCAB), batch).cross_entropy
    return float(total) / int(batch.known.sum())


def test_evaluation_is_kdscales_validation(cache: str, planted: Planted, tmp_path: Path) -> None:
    rows = planted.rows.take(np.arange(7))
    trainer = make_trainer(
        cache,
        str(tmp_path),
        trainer={"eval_dataset": {"rows": rows, "cache": kdscale.open_cache(cache)}},
        eval_strategy="steps",
        eval_steps=4,
        per_device_eval_batch_size=3,
    )
    before = trainer.evaluate()
    assert before["eval_rows_loss"] == pytest.approx(label_mean(student(), rows), rel=1e-5)
    expected = label_mean(student(), planted.rows)
    assert before["eval_cache_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    kls = [line["eval_cache_kl"] for line in trainer.state.log_history if "eval_cache_kl" in line]
    assert len(kls) == 2
    assert kls[-1] < before["eval_cache_kl"]
    after = label_mean(trainer.model, rows)
    assert trainer.evaluate()["eval_rows_loss"] == pytest.approx(after, rel=1e-5)


def test_the_best_checkpoint_is_found_by_the_evaluation(
    cache: str, planted: Planted, tmp_path: Path
) -> None:
    trainer = make_trainer(
        cache,
        str(tmp_path),
        trainer={"eval_dataset": planted.rows},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    losses = {
        line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line
    }
    best = min(losses, key=lambda step: losses[step])
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert label_mean(trainer.model, planted.rows) == pytest.approx(losses[best], rel=1e-5)


def test_adapters_of_peft_are_trained_and_saved(cache: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(student(), config)
    trainer = make_trainer(cache, str(tmp_path), model=model, save_strategy="steps", save_steps=8)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    folder = tmp_path / "checkpoint-8"
    assert (folder / "adapter_model.safetensors").is_file()
    assert not list(folder.glob("model*.safetensors"))
    loaded = peft.PeftModel.from_pretrained(student(), folder)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_head_with_an_adapter_is_trained_by_the_models_own_logits(
    cache: str, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(student(), config)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    found = by_trainer(cache, str(tmp_path), model=model)
    after = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    assert found[-1]["loss"] < found[0]["loss"]


def test_mixed_precision_is_near_to_float32_and_ends_with_the_forward(
    cache: str, whole: Losses, tmp_path: Path
) -> None:
    assert_equal(by_trainer(cache, str(tmp_path / "half"), bf16=True), whole, rel=0.05)
    assert not torch.is_autocast_enabled("cpu")
    assert by_trainer(cache, str(tmp_path / "whole")) == whole


def test_activations_may_be_computed_again(cache: str, whole: Losses, tmp_path: Path) -> None:
    found = by_trainer(cache, str(tmp_path), activation_checkpointing=True)
    assert_equal(found, whole, rel=1e-5)


def test_what_was_never_tried_is_refused(cache: str, tmp_path: Path) -> None:
    for argument, value in (("label_smoothing_factor", 0.1), ("torch_compile", True)):
        with pytest.raises(KdscaleError, match=argument):
            make_trainer(cache, str(tmp_path), **{argument: value})
    with pytest.raises(KdscaleError, match=r"not defined on the targets of 'varopt'"):
        make_trainer(cache, str(tmp_path), trainer={"divergence": "reverse_kl"})
    with pytest.raises(KdscaleError, match=r"kd_weight is 2"):
        make_trainer(cache, str(tmp_path), trainer={"kd_weight": 2})
    with pytest.raises(KdscaleError, match=r"eval_dataset is a list"):
        make_trainer(cache, str(tmp_path), trainer={"eval_dataset": [1]}).evaluate()
    small = student()
    small.resize_token_embeddings(VOCAB - 1)
    with pytest.raises(KdscaleError, match="49 embeddings"):
        make_trainer(cache, str(tmp_path), model=small)


def test_a_forward_stays_what_it_was(cache: str, tmp_path: Path) -> None:
    trainer = make_trainer(cache, str(tmp_path), per_device_train_batch_size=MICRO)
    ids = torch.arange(10)[None]
    found = trainer.model(input_ids=ids, labels=ids)
    expected = student()(input_ids=ids, labels=ids)
    torch.testing.assert_close(found.loss, expected.loss)
