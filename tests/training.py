"""One training of a small student from a cache, three times: by kdscale, by a loop, by a Trainer.

`by_kdscale` is the code that `kdscale run` has on its workers; the other two are what users write.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, TrainingArguments

import kdscale
from kdscale.cache.read.reader import CacheReader
from kdscale.config import RunConfig
from kdscale.config.cache import CodecConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.objective import DistillationLoss
from kdscale.distill.steps import read_steps
from kdscale.distributed.rank import current_rank
from kdscale.integrations.transformers import DistillationTrainer
from kdscale.models.head import ModelWithHead
from kdscale.store import open_store
from kdscale.train.backends.base import make_backend
from kdscale.train.batches import micro_batches_per_rank
from kdscale.train.loop import Callbacks, Progress, train
from tests.runs import tiny_config
from tests.small_llama import llama_config, strong_llama
from tests.unit.cache.planted import ROW_LENGTH, VOCAB, Planted, make_planted

# 4 sequences a step of 23, over 8 steps: an epoch ends inside of a step.
STEPS, STEP, MICRO, RATE, SEED, WEIGHT = 8, 4, 2, 3e-2, 5, 0.7

Losses = list[dict[str, float]]
"""`loss`, `ce_loss`, `kl` and `norm` of each step."""


def plant(folder: Path, codec: CodecConfig | None = None) -> Planted:
    """Write a cache of 23 packed sequences to `folder`."""
    return make_planted(open_store(str(folder)), config=codec).publish()


def student(seed: int = 0) -> PreTrainedModel:
    """Return a student whose logits are far from uniform."""
    return strong_llama(llama_config(VOCAB, ROW_LENGTH), seed)


def by_kdscale(cache: str, **curriculum: Any) -> Losses:
    """Train as the distill stage does, on this rank of its group."""
    raw = tiny_config(Path("corpus"), "output")
    raw["distill"]["loss"] = {"kd_weight": {"start": WEIGHT}}
    raw["distill"]["curriculum"] = {"warmup_share": 0.0, **curriculum}
    raw["distill"]["training"] = {
        "steps": STEPS,
        "global_batch_size": STEP,
        "micro_batch_size": MICRO,
        "log_every": 1,
        "validate_every": STEPS,
        "optimiser": {
            "learning_rate": RATE,
            "schedule": "constant",
            "warmup_share": 0.0,
            "weight_decay": 0.0,
        },
    }
    config = RunConfig.model_validate(raw)
    distill, worker = config.distill, current_rank()
    reader = CacheReader(open_store(cache))
    sampler = CurriculumSampler(
        distill.curriculum,
        len(reader),
        global_batch_size=STEP,
        steps=STEPS,
        seed=SEED,
        sequences_per_chunk=reader.sequences_per_chunk,
    )
    sampler.set_difficulty(0, reader.statistics.entropy)
    wrap = partial(ModelWithHead, vocab_size=VOCAB)
    count = micro_batches_per_rank(STEP, MICRO, worker.world_size)
    found: Losses = []

    def log(step: int, tokens: int, metrics: dict[str, float]) -> None:
        parts = {name: metrics[f"train/{name}"] for name in ("loss", "ce_loss", "kl")}
        found.append(parts | {"norm": metrics["train/gradient_norm"]})

    train(
        backend=make_backend(student, wrap, distill.training, count, worker),
        training=distill.training,
        worker=worker,
        start=Progress(),
        steps=read_steps(distill, worker, reader, sampler, range(STEPS)),
        compute_loss=DistillationLoss(config, reader.codec, None),
        callbacks=Callbacks(validate=lambda: {"loss": 0.0}, log=log),
    )
    return found


class Student(torch.nn.Module):
    """A model and its loss in one forward, as data parallelism needs it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: kdscale.Batch) -> tuple[torch.Tensor, ...]:
        inputs = kdscale.model_inputs(self.model, batch)
        hidden = self.model.model(**inputs).last_hidden_state
        found = kdscale.loss_parts(hidden, self.model.lm_head, batch, kd_weight=WEIGHT)
        assert found.kl is not None
        return found.objective, found.cross_entropy, found.kl


def by_loop(cache: str, **options: Any) -> Losses:
    """Train as a program of one's own does, on this rank of its group."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    micro_batches = STEP // (MICRO * ranks)
    loader = kdscale.open_cache(cache).loader(MICRO, seed=SEED, **({"endless": True} | options))
    trained: torch.nn.Module = Student(student())
    if ranks > 1:
        trained = DistributedDataParallel(trained)
    optimiser = torch.optim.AdamW(trained.parameters(), RATE, (0.9, 0.95), weight_decay=0.0)
    batches, found = iter(loader), []
    for _ in range(STEPS):
        step = [next(batches) for _ in range(micro_batches)]
        targets = torch.tensor(float(sum(batch.num_targets for batch in step)))
        if ranks > 1:
            dist.all_reduce(targets)
        sums = torch.zeros(3)
        for batch in step:
            parts = trained(batch)
            # Gradients are averaged over ranks.
            (parts[0] * ranks / targets).backward()
            sums += torch.stack(parts).detach()
        if ranks > 1:
            dist.all_reduce(sums)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss, ce_loss, kl = (sums / targets).tolist()
        found.append({"loss": loss, "ce_loss": ce_loss, "kl": kl, "norm": float(norm)})
    return found


def by_trainer(
    cache: str,
    output: str,
    *,
    model: Any | None = None,
    resume: bool | str = False,
    trainer: dict[str, Any] | None = None,
    **arguments: Any,
) -> Losses:
    """Train with a DistillationTrainer, on this rank of its group."""
    made = make_trainer(cache, output, model=model, trainer=trainer, **arguments)
    made.train(resume_from_checkpoint=resume)
    names = {"loss": "loss", "ce_loss": "ce_loss", "kl": "kl", "grad_norm": "norm"}
    return [
        {names[name]: value for name, value in line.items() if name in names}
        for line in made.state.log_history
        if "loss" in line
    ]


def make_trainer(
    cache: str,
    output: str,
    *,
    model: Any | None = None,
    trainer: dict[str, Any] | None = None,
    **arguments: Any,
) -> DistillationTrainer:
    """Return the trainer of `by_trainer`; `arguments` are TrainingArguments."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    fixed = {
        "max_steps": STEPS,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": STEP // (MICRO * ranks),
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "ddp_backend": "gloo" if dist.is_initialized() else None,
        "disable_tqdm": True,
        "seed": SEED,
    }
    args = TrainingArguments(output, **(fixed | arguments))
    options = {"kd_weight": WEIGHT} | (trainer or {})
    return DistillationTrainer(model or student(), args, kdscale.open_cache(cache), **options)


def assert_equal(found: Losses, expected: Losses, rel: float) -> None:
    """Every logged value of every step."""
    assert len(found) == len(expected) > 0
    for step, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert math.isclose(mine[name], value, rel_tol=rel), (step, name, mine, theirs)
