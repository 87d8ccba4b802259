"""Two real gloo ranks against one: gradients, losses, ZeRO stages, and resuming."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kdscale.config.teacher import ModelConfig
from kdscale.config.training import OptimiserConfig, TrainingConfig, ZeroConfig
from kdscale.models.build import build_model, load_model, make_config
from kdscale.models.forward import compute_logits, next_token_labels
from kdscale.models.sharded import load_teacher, parameters_held
from kdscale.store import open_store
from kdscale.train.backend import make_backend
from kdscale.train.batches import micro_batches_per_rank, rank_rows, split_micro_batches
from kdscale.train.checkpoint import load_checkpoint, save_checkpoint
from kdscale.train.loop import Hooks, LossSums, Progress, Step, train
from kdscale.workers import current_worker
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
# Dropout makes the random state part of what a resume has to restore.
GPT2_WITH_DROPOUT = ModelConfig(
    architecture="gpt2",
    options={"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.2, "embd_pdrop": 0.2},
)


def training(stage: int = 0, **fields: Any) -> TrainingConfig:
    return TrainingConfig(
        steps=STEPS,
        # 7 rows over 2 ranks in micro-batches of 2: uneven on purpose.
        batch_rows=7,
        micro_batch_rows=2,
        optimiser=OptimiserConfig(learning_rate=1e-2, clip=0.5, warmup_share=0.0),
        zero=ZeroConfig(stage=stage),
        log_every=1,
        checkpoint_every=3,
        **fields,
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """ids [ROWS, LENGTH] and a loss mask with a different number of targets in every row."""
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(VOCAB, size=(ROWS, LENGTH)))
    mask = torch.from_numpy(random.random((ROWS, LENGTH)) < np.linspace(0.2, 1, ROWS)[:, None])
    mask[:, -1] = False
    return ids, mask


def make(model: ModelConfig = MODEL) -> PreTrainedModel:
    return build_model(make_config(model, VOCAB, SPECIAL, LENGTH), 0)


def run(
    config: TrainingConfig,
    build: Callable[[], PreTrainedModel] = make,
    folder: str | None = None,
    until: int = STEPS,
) -> dict[str, Any]:
    """Train on this rank; the logged losses and the order of rows that this rank saw."""
    worker = current_worker()
    ids, mask = data()
    count = micro_batches_per_rank(config.batch_rows, config.micro_batch_rows, worker.world_size)
    backend = make_backend(build, config, count, worker)
    torch.manual_seed(100 + worker.rank)
    store = open_store(folder) if folder else None
    start = Progress()
    if store is not None:
        start = load_checkpoint(store, backend, worker, config.zero.stage)
    logged: dict[int, dict[str, float]] = {}
    seen: list[int] = []

    def steps() -> Iterator[Step[tuple[torch.Tensor, torch.Tensor]]]:
        for step in range(start.step, config.steps):
            batch = np.arange(step * config.batch_rows, (step + 1) * config.batch_rows) % ROWS
            mine = rank_rows(batch, worker.rank, worker.world_size)
            seen.extend(mine.tolist())
            parts = []
            for rows, valid in split_micro_batches(
                mine, batch, config.micro_batch_rows, worker.world_size
            ):
                parts.append((ids[rows], mask[rows] & torch.from_numpy(valid)[:, None]))
            yield Step(parts, sum(int(m.sum()) for _, m in parts))

    def compute_loss(module: torch.nn.Module, batch: Any, step: int) -> LossSums:
        rows, targets = batch
        logits = compute_logits(module, rows, torch.ones_like(rows), VOCAB)[targets]
        labels = next_token_labels(rows)[targets]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return LossSums(loss, {"loss": loss.detach()})

    def save(step: int, tokens: int) -> None:
        if store is not None and step <= until:
            save_checkpoint(store, Progress(step, tokens), backend, worker, config.zero.stage)

    train(
        backend=backend,
        training=config,
        worker=worker,
        start=start,
        steps=steps(),
        compute_loss=compute_loss,
        hooks=Hooks(
            log=lambda step, tokens, metrics: logged.update({step: {**metrics, "tokens": tokens}}),
            validate=dict,
            save=save,
            progress=lambda done, tokens: None,
            extra=lambda step: {},
        ),
    )
    losses = {step: metrics["train/loss"] for step, metrics in logged.items()}
    norms = {step: metrics["train/gradient_norm"] for step, metrics in logged.items()}
    tokens = {step: metrics["tokens"] for step, metrics in logged.items()}
    return {"losses": losses, "norms": norms, "tokens": tokens, "seen": seen}


def all_stages(folder: str) -> dict[str, Any]:
    """Every back end in one group of ranks: starting processes is the slow part."""
    results: dict[str, Any] = {"ddp": run(training())}
    for stage in (1, 2, 3):
        where = f"{folder}/zero{stage}"
        # Stage 3 draws random weights in another order, so all stages start from a file here.
        build = partial(load_model, f"{folder}/model")
        results[f"zero{stage}"] = run(training(stage), build, where, until=3)
        results[f"zero{stage} resumed"] = run(training(stage), build, where)
    where, build = f"{folder}/ddp", partial(make, GPT2_WITH_DROPOUT)
    results["dropout"] = run(training(), build, where, until=3)
    results["dropout resumed"] = run(training(), build, where)
    run(training(), folder=f"{folder}/elastic", until=3)
    return results


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    make().save_pretrained(folder / "model")
    return run_ranks(all_stages, 2, str(folder)), folder


@pytest.mark.dist
def test_two_ranks_give_the_losses_gradients_and_order_of_one(
    two_ranks: tuple[list[dict[str, Any]], Path],
) -> None:
    alone, (first, second) = run(training()), two_ranks[0]
    assert len(alone["losses"]) == STEPS
    for step in range(1, STEPS + 1):
        assert first["ddp"]["losses"][step] == pytest.approx(alone["losses"][step], rel=2e-5)
        assert first["ddp"]["norms"][step] == pytest.approx(alone["norms"][step], rel=2e-4)
        assert first["ddp"]["tokens"][step] == alone["tokens"][step]
    both = first["ddp"]["seen"] + second["ddp"]["seen"]
    assert sorted(both) == sorted(alone["seen"])


@pytest.mark.dist
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_gives_the_losses_of_ddp(
    two_ranks: tuple[list[dict[str, Any]], Path], stage: int
) -> None:
    results = two_ranks[0][0]
    expected = results["ddp"]["losses"]
    found = results[f"zero{stage}"]["losses"]
    for step in range(1, STEPS + 1):
        assert found[step] == pytest.approx(expected[step], rel=1e-4), step


@pytest.mark.dist
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "dropout"])
def test_resuming_repeats_the_losses_of_the_undisturbed_run(
    two_ranks: tuple[list[dict[str, Any]], Path], name: str
) -> None:
    whole, resumed = (two_ranks[0][0][key] for key in (name, f"{name} resumed"))
    assert sorted(resumed["losses"]) == [4, 5, 6]
    for step in (4, 5, 6):
        assert resumed["losses"][step] == whole["losses"][step], step
        assert resumed["tokens"][step] == whole["tokens"][step]


@pytest.mark.dist
def test_ddp_resumes_at_another_world_size_with_the_same_losses(
    two_ranks: tuple[list[dict[str, Any]], Path],
) -> None:
    results, folder = two_ranks
    resumed = run(training(), folder=f"{folder}/elastic")
    for step in (4, 5, 6):
        expected = results[0]["ddp"]["losses"][step]
        assert resumed["losses"][step] == pytest.approx(expected, rel=2e-5)


def shard(folder: str) -> tuple[int, int, list[float]]:
    worker = current_worker()
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
