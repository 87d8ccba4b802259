"""Two real gloo ranks against one: gradients, losses, ZeRO stages, and resuming anywhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kdscale.config.teacher import ModelConfig
from kdscale.config.training import OptimiserConfig, TrainingConfig, ZeroConfig
from kdscale.distributed.rank import current_rank
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import compute_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, load_model, make_config
from kdscale.models.sharded import load_teacher, parameters_held
from kdscale.models.tasks import CAUSAL_LM, TaskSpec
from kdscale.store import open_store
from kdscale.train.backends import zero
from kdscale.train.backends.base import make_backend
from kdscale.train.backends.zero import _zero_config
from kdscale.train.batches import micro_batches_per_rank, split_micro_batches
from kdscale.train.checkpoint import load_checkpoint, save_checkpoint
from kdscale.train.loop import Callbacks, MicroBatchLoss, Progress, Step, train
from tests.ranks import run_ranks

VOCAB, LENGTH, ROWS, STEPS = 64, 12, 40, 6
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MODEL = ModelConfig(
    architecture="llama",
    options={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
)
BERT = ModelConfig(
    architecture="bert",
    options={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
)
GPT2 = ModelConfig(architecture="gpt2", options={"n_embd": 32, "n_layer": 2, "n_head": 4})
# (ZeRO stage that saved, ZeRO stage that goes on at another world size)
RESUMED = [(0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (1, 3), (3, 2), (2, 0)]


def training(stage: int = 0, **fields: Any) -> TrainingConfig:
    return TrainingConfig(
        steps=STEPS,
        # 7 rows over 2 ranks in micro-batches of 2: uneven on purpose.
        global_batch_size=7,
        micro_batch_size=2,
        optimiser=OptimiserConfig(learning_rate=1e-2, clip=0.5, warmup_share=0.0),
        zero=ZeroConfig(stage=stage),
        log_every=1,
        checkpoint_every=3,
        **fields,
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [ROWS, LENGTH] and a loss mask with other numbers of targets in each sequence."""
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(VOCAB, size=(ROWS, LENGTH)))
    mask = torch.from_numpy(random.random((ROWS, LENGTH)) < np.linspace(0.2, 1, ROWS)[:, None])
    mask[:, -1] = False
    return ids, mask


def make(model: ModelConfig = MODEL, task_spec: TaskSpec = CAUSAL_LM) -> PreTrainedModel:
    return build_model(make_config(model, VOCAB, SPECIAL, LENGTH, task_spec), 0)


def run(
    config: TrainingConfig,
    build: Callable[[], PreTrainedModel] = make,
    folder: str | None = None,
    until: int = STEPS,
) -> dict[str, Any]:
    """Train on this rank; the logged losses and the order of rows that this rank saw."""
    worker = current_rank()
    ids, mask = data()
    count = micro_batches_per_rank(
        config.global_batch_size, config.micro_batch_size, worker.world_size
    )
    backend = make_backend(build, partial(ModelWithHead, vocab_size=VOCAB), config, count, worker)
    torch.manual_seed(100 + worker.rank)
    store = open_store(folder) if folder else None
    start = Progress()
    if store is not None:
        start = load_checkpoint(store, backend, worker, config)
    logged: dict[int, dict[str, float]] = {}
    seen: list[int] = []

    def steps() -> Iterator[Step[tuple[torch.Tensor, torch.Tensor]]]:
        for step in range(start.step, config.steps):
            batch = (
                np.arange(step * config.global_batch_size, (step + 1) * config.global_batch_size)
                % ROWS
            )
            parts = []
            for rows, valid in split_micro_batches(
                batch, config.micro_batch_size, worker.rank, worker.world_size
            ):
                seen.extend(rows[valid].tolist())
                parts.append((ids[rows], mask[rows] & torch.from_numpy(valid)[:, None]))
            yield Step(parts, sum(int(m.sum()) for _, m in parts), batch)

    def compute_loss(model: ModelWithHead, batch: Any, step: int) -> MicroBatchLoss:
        rows, targets = batch
        labels = torch.roll(rows, -1, dims=1)[targets]
        hidden = model.hidden(rows, torch.ones_like(rows))[targets]
        loss = head_and_loss(hidden, model.head, labels).objective
        return loss, {"loss": loss.detach()}

    def save(progress: Progress) -> None:
        if store is not None and progress.step <= until:
            save_checkpoint(store, progress, backend, worker, config)

    train(
        backend=backend,
        training=config,
        worker=worker,
        start=start,
        steps=steps(),
        compute_loss=compute_loss,
        callbacks=Callbacks(
            log=lambda step, tokens, metrics: logged.update({step: {**metrics, "tokens": tokens}}),
            validate=lambda: {"loss": 0.0},
            save=save,
        ),
    )
    losses = {step: metrics["train/loss"] for step, metrics in logged.items()}
    norms = {step: metrics["train/gradient_norm"] for step, metrics in logged.items()}
    tokens = {step: metrics["tokens"] for step, metrics in logged.items()}
    return {"losses": losses, "norms": norms, "tokens": tokens, "seen": seen}


def save_alone(folder: str) -> None:
    """On one rank: checkpoints after half of the steps, for others to go on from."""
    for stage in (0, 1, 2, 3):
        build = partial(load_model, f"{folder}/model")
        run(training(stage), build, f"{folder}/one-{stage}", until=3)


def all_stages(folder: str) -> dict[str, Any]:
    """Every back end in one group of ranks: starting processes is the slow part."""
    results: dict[str, Any] = {}
    for stage in (0, 1, 2, 3):
        where = f"{folder}/two-{stage}"
        # Stage 3 draws random weights in another order, so all stages start from a file here.
        build = partial(load_model, f"{folder}/model")
        results[f"{stage}"] = run(training(stage), build, where, until=3)
        results[f"{stage} resumed"] = run(training(stage), build, where, until=3)
        results[f"{stage} recomputed"] = run(training(stage, activation_checkpointing=True), build)
    for saved, resumed in RESUMED:
        results[f"{saved} on {resumed}"] = resume(folder, "one", saved, resumed)
    with every_parameter_partitioned():
        results["partitioned"] = resume(folder, "one", 3, 3)
        results["partitioned, saved"] = run(
            training(3), partial(load_model, f"{folder}/model"), f"{folder}/parts-3", until=3
        )
        results["masked partitioned"] = run(training(3), partial(load_model, f"{folder}/masked"))
    results["partitioned, resumed"] = resume(folder, "parts", 3, 3)
    results["masked"] = run(training(), partial(load_model, f"{folder}/masked"))
    # Dropout makes the random state part of what a resume has to restore.
    where, build = f"{folder}/dropout", partial(make, GPT2)
    results["dropout"] = run(training(dropout=0.2), build, where, until=3)
    results["dropout resumed"] = run(training(dropout=0.2), build, where, until=3)
    return results


def resume_alone(folder: str) -> dict[str, Any]:
    """On one rank: from what two saved."""
    return {
        f"{saved} on {resumed}": resume(folder, "two", saved, resumed) for saved, resumed in RESUMED
    }


@contextmanager
def every_parameter_partitioned() -> Iterator[None]:
    """ZeRO-3 keeps small parameters whole on every rank, so all of a small model: not here."""

    def config(*arguments: Any) -> dict[str, Any]:
        found = _zero_config(*arguments)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return found

    with mock.patch.object(zero, "_zero_config", config):
        yield


def resume(folder: str, ranks: str, saved: int, stage: int) -> dict[str, Any]:
    """From what `ranks` ranks saved at the stage `saved`."""
    build = partial(load_model, f"{folder}/model")
    where = f"{folder}/{ranks}-{saved}"
    return run(training(stage), build, where, until=3)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    make().save_pretrained(folder / "model")
    make(BERT, TaskSpec("masked-lm")).save_pretrained(folder / "masked")
    run_ranks(save_alone, 1, str(folder))
    return run_ranks(all_stages, 2, str(folder)), folder


@pytest.fixture(scope="module")
def one_rank(two_ranks: tuple[list[dict[str, Any]], Path]) -> dict[str, Any]:
    found: dict[str, Any] = run_ranks(resume_alone, 1, str(two_ranks[1]))[0]
    return found


@pytest.mark.dist
def test_two_ranks_give_the_losses_gradients_and_order_of_one(
    two_ranks: tuple[list[dict[str, Any]], Path],
) -> None:
    alone, (first, second) = run(training()), two_ranks[0]
    assert len(alone["losses"]) == STEPS
    for step in range(1, STEPS + 1):
        assert first["0"]["losses"][step] == pytest.approx(alone["losses"][step], rel=2e-5)
        assert first["0"]["norms"][step] == pytest.approx(alone["norms"][step], rel=2e-4)
        assert first["0"]["tokens"][step] == alone["tokens"][step]
    both = first["0"]["seen"] + second["0"]["seen"]
    assert sorted(both) == sorted(alone["seen"])


@pytest.mark.dist
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_gives_the_losses_of_ddp(
    two_ranks: tuple[list[dict[str, Any]], Path], stage: int
) -> None:
    results = two_ranks[0][0]
    for step in range(1, STEPS + 1):
        expected = results["0"]["losses"][step]
        assert results[f"{stage}"]["losses"][step] == pytest.approx(expected, rel=1e-4), step


@pytest.mark.dist
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_activation_checkpointing_changes_no_loss(
    two_ranks: tuple[list[dict[str, Any]], Path], stage: int
) -> None:
    plain, recomputed = (two_ranks[0][0][f"{stage}{suffix}"] for suffix in ("", " recomputed"))
    assert recomputed["losses"] == plain["losses"]
    assert recomputed["norms"] == plain["norms"]


@pytest.mark.dist
@pytest.mark.parametrize("name", ["0", "1", "2", "3", "dropout"])
def test_resuming_repeats_the_losses_of_the_undisturbed_run(
    two_ranks: tuple[list[dict[str, Any]], Path], name: str
) -> None:
    whole, resumed = (two_ranks[0][0][key] for key in (name, f"{name} resumed"))
    assert sorted(resumed["losses"]) == [4, 5, 6]
    for step in (4, 5, 6):
        assert resumed["losses"][step] == whole["losses"][step], step
        assert resumed["norms"][step] == whole["norms"][step], step
        assert resumed["tokens"][step] == whole["tokens"][step]


@pytest.mark.dist
@pytest.mark.parametrize(("saved", "stage"), RESUMED)
def test_any_world_size_and_stage_goes_on_from_any_other(
    two_ranks: tuple[list[dict[str, Any]], Path],
    one_rank: dict[str, Any],
    saved: int,
    stage: int,
) -> None:
    undisturbed = two_ranks[0][0]["0"]
    for ranks, results in (("1 to 2", two_ranks[0][0]), ("2 to 1", one_rank)):
        resumed = results[f"{saved} on {stage}"]
        assert sorted(resumed["losses"]) == [4, 5, 6]
        for step in (4, 5, 6):
            expected = undisturbed["losses"][step]
            assert resumed["losses"][step] == pytest.approx(expected, rel=3e-6), (ranks, step)
            assert resumed["tokens"][step] == undisturbed["tokens"][step]


@pytest.mark.dist
def test_parameters_in_parts_go_on_like_whole_ones(
    two_ranks: tuple[list[dict[str, Any]], Path],
) -> None:
    results = two_ranks[0][0]
    for name in ("partitioned", "partitioned, resumed"):
        assert sorted(results[name]["losses"]) == [4, 5, 6]
        for step in (4, 5, 6):
            expected = results["0"]["losses"][step]
            assert results[name]["losses"][step] == pytest.approx(expected, rel=3e-6), name


@pytest.mark.dist
def test_a_sharded_head_with_a_transform_and_a_bias_gives_the_losses_of_a_whole_one(
    two_ranks: tuple[list[dict[str, Any]], Path],
) -> None:
    results = two_ranks[0][0]
    alone = run(training(), partial(load_model, two_ranks[1] / "masked"))
    for step in range(1, STEPS + 1):
        expected = alone["losses"][step]
        for name in ("masked", "masked partitioned"):
            assert results[name]["losses"][step] == pytest.approx(expected, rel=1e-4), (name, step)


def shard(folder: str) -> tuple[int, int, list[float]]:
    worker = current_rank()
    model = load_teacher(folder, worker, ZeroConfig(stage=3))
    held, total = parameters_held(model)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        logits = compute_logits(model, ids, torch.ones_like(ids), VOCAB)
    # Students are built in the same process afterwards: they must be whole.
    student = make()
    assert not any(hasattr(p, "ds_id") for p in student.parameters())
    return held, total, logits[0, -1].tolist()


@pytest.mark.dist
def test_no_rank_holds_the_whole_teacher_and_its_logits_are_exact(tmp_path: Path) -> None:
    teacher = make()
    teacher.save_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = load_model(tmp_path)(input_ids=ids).logits[0, -1]
    whole = sum(p.numel() for p in teacher.parameters())
    results = run_ranks(shard, 2, str(tmp_path))
    for held, total, logits in results:
        assert total == whole
        # Half each; DeepSpeed pads a shard to a whole number of elements.
        assert whole // 2 <= held <= whole * 0.52
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=1e-5)
