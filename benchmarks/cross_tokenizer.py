"""Students with a tokenizer of their own, from one cache, beside those with the teacher's.

    python benchmarks/assets.py
    python benchmarks/cross_tokenizer.py [--quick] [--assets FOLDER] [--keep FOLDER] [--seeds 3]
        [--passes 4] [--only labels --only classes-varopt ...]
    python benchmarks/assets.py gemma3-270m
    python benchmarks/cross_tokenizer.py --teacher gemma3-270m --student smollm2-135m-instruct \
        --rows 96 --seeds 1

The teacher is SmolLM2-135M-Instruct (49,152 ids) or another of the assets, on BBC news; the student
starts at random and has a byte-level BPE of 8,192 ids trained on the same articles, or with
--student the weights and the tokenizer of another asset. Variants, each at what a cache keeps of
the teacher's distribution (`varopt`) and, at the first seed alone, at the whole of it (`full`):

    before                    a loaded student as it was

    shared-labels, shared-*   the student with the teacher's tokenizer: labels alone, and distilled
    labels                    its own tokenizer, cross-entropy alone: where the way begins
    classes-*                 what kdscale does: classes of tokens, and the label inside its class
    one-by-one-*              ids replaced one by one, where both next tokens span the same bytes
    chunks-*                  NeMo-RL's P-KL over chunks between common boundaries (see
                              ablation/own_tokens.py), beside cross-entropy

All variants of a seed meet the same rows in the same order, once or --passes times; those of one
tokenizer start from the same weights. Scores are bits a byte of held-out articles.
`gap_closed_vs_own_tokenizer` is what `classes-varopt` gains over `labels`, as a share of what the
same student gains with the teacher's tokenizer. A finished
variant is kept in --keep. The last line is one JSON object, also kept in
results/cross_tokenizer.json; --quick trains a few steps and keeps nothing.
"""

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ablation.corpus import Corpus, load_corpora
from benchmarks.ablation.kept import WholeDistribution, keep
from benchmarks.ablation.own_tokens import (
    ChunkLoss,
    OwnTokens,
    chunk_batch,
    equal_spans,
    in_own_tokens,
    one_by_one,
    projection,
    read_tokens,
    target_bytes,
)
from benchmarks.ablation.setting import BATCH_ROWS as BATCH
from benchmarks.ablation.setting import (
    HELD_OUT_ROWS,
    ROW_LENGTH,
    ROWS,
    arguments_of,
    make_config,
    once,
)
from benchmarks.common import (
    ASSETS,
    ROOT,
    TEACHER,
    Assets,
    Keep,
    Quick,
    Row,
    Seeds,
    deviation,
    goal,
    report,
)
from kdscale.cache.codecs import make_codec
from kdscale.config import RunConfig
from kdscale.config.cache import VaroptCodec
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import train_tokenizer
from kdscale.distill.alignment import TokenizerPair
from kdscale.distill.alignment.student_data import class_map
from kdscale.distill.batches import MicroBatch
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distributed.rank import Rank
from kdscale.losses.classes import ClassMap
from kdscale.models.forward import row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.init.plan import build_student, plan_student
from kdscale.models.stored_tensors import StoredTensors
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.loop import Callbacks, Progress, Step, train
from kdscale.types import Rows

WORKER = Rank(0, 1, torch.device("cpu"))
IDS = 8192
SMALL = {
    "architecture": "llama",
    "options": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
}
FAST = {"learning_rate": 3e-3, "warmup_share": 0.1, "final_learning_rate_share": 0.1}
FOR_LOADED = FAST | {"learning_rate": 1e-4}
WHOLE, KEPT = "full", "varopt"
CODECS = (WHOLE, KEPT)


@dataclass(frozen=True)
class Side:
    """A corpus in the tokens of a student, and how to score on it."""

    rows: Rows
    held_out: Rows
    tokens: TokenBytes


@dataclass(frozen=True)
class Variant:
    """A variant: the loss, and the batch of some rows [m] for it."""

    side: Side
    loss: Any  # None: not trained
    batch: Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Setting:
    """What the command line says of the trainings."""

    student: Path | None  # what it starts from
    passes: int
    kd_weight: float
    whole: bool
    only: list[str] | None


def main(
    quick: Quick = False,
    assets: Assets = ASSETS,
    keep_in: Keep = ROOT / "runs" / "cross-tokenizer",
    seeds: Seeds = 3,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a pass.")] = ROWS,
    passes: Annotated[int, typer.Option(min=1, help="Passes over the rows.")] = 1,
    teacher: Annotated[str, typer.Option(help="Its folder in --assets.")] = TEACHER,
    student: Annotated[
        str | None, typer.Option(help="Folder in --assets that the student starts from.")
    ] = None,
    kd_weight: Annotated[float, typer.Option(min=0, max=1, help="Of the distillation.")] = 1.0,
    whole: Annotated[bool, typer.Option(help="Measure the whole distribution, too.")] = True,
    only: Annotated[list[str] | None, typer.Option(help="A variant to measure; else all.")] = None,
) -> None:
    """Measure all variants, print and keep."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        rows, seeds = (BATCH, 1) if quick else (rows, seeds)
        counts = {"train": rows, "heldout": 1 if quick else HELD_OUT_ROWS}
        corpora = load_corpora(assets, folder, ROW_LENGTH, counts, teacher)
        start = None if student is None else assets / student
        own = start or _trained(corpora["train"], assets / teacher, folder)
        pair = _pair(assets / teacher, own, Path(scratch))
        setting = Setting(start, passes, kd_weight, whole, only)
        found = measure(corpora, pair, folder / teacher, range(seeds), setting)
        shares = {name: in_own_tokens(each, pair).target_share for name, each in corpora.items()}
    report(
        _name(teacher, student, passes),
        found,
        goals(found),
        keep=not quick,
        teacher_ids=pair.teacher.vocab_size,
        student_ids=pair.student.vocab_size,
        classes=pair.class_count,
        target_share=shares,
        tokens=corpora["train"].targets,
        row_length=ROW_LENGTH,
        passes=passes,
        seeds=seeds,
        kd_weight=kd_weight,
    )


def _name(teacher: str, student: str | None, passes: int) -> str:
    """Return the name of the kept result."""
    models = [] if student is None else [teacher, student]
    return "_".join(["cross_tokenizer", *models, *([f"{passes}_passes"] if passes > 1 else [])])


def _trained(corpus: Corpus, teacher: Path, folder: Path) -> Path:
    """Return the folder of a tokenizer trained on the corpus; kept in `folder`."""
    own = folder / f"bpe-{IDS}-{len(corpus)}"
    if not own.exists():
        with tempfile.TemporaryDirectory() as scratch:
            tokens = read_tokens(teacher, Path(scratch))
        ids, segments = corpus.rows.input_ids, corpus.rows.segment_ids
        texts = [
            tokens.spell(row[segment == number]).decode("utf-8", "ignore")
            for row, segment in zip(ids, segments, strict=True)
            for number in np.unique(segment)
        ]
        train_tokenizer(texts, IDS, own)
    return own


def _pair(teacher: Path, student: Path, scratch: Path) -> TokenizerPair:
    theirs = read_tokens(teacher, scratch / "teacher-tokenizer")
    return TokenizerPair.build(theirs, read_tokens(student, scratch / "student-tokenizer"))


def measure(
    corpora: dict[str, Corpus],
    pair: TokenizerPair,
    folder: Path,
    seeds: range,
    setting: Setting,
) -> list[Row]:
    """Return the rows of all variants at all seeds."""
    student = setting.student
    sequences = len(corpora["train"]) * setting.passes
    start = {"model": SMALL} if student is None else {"load": str(student)}
    weight = {"kd_weight": {"kind": "constant", "start": setting.kd_weight}}

    def config_of(seed: int) -> RunConfig:
        optimiser = FAST if student is None else FOR_LOADED
        made = make_config(sequences, seed, {"model": SMALL}, None, optimiser, BATCH)
        distill = made.model_dump()["distill"] | {"student": start, "loss": weight}
        return RunConfig.model_validate(made.model_dump() | {"distill": distill})

    variants = _variants(corpora, pair, folder, config_of(0), shared=student is None)
    if setting.only is not None:
        variants = {name: variants[name] for name in setting.only}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for seed in seeds:
        config = config_of(seed)
        for name, variant in variants.items():
            if name.endswith(WHOLE) and not (setting.whole and seed == seeds[0]):
                continue
            if name == "before" and seed != seeds[0]:
                continue
            settings = [arguments_of(config), pair.digest, len(corpora["heldout"])]
            run = partial(run_variant, config, variant, student)
            scores[name].append(once(folder / "arms", f"{name}-{seed}", settings, run))
    return [
        {"variant": name, "seeds": len(found)}
        | deviation("bits_per_byte", [each["bits_per_byte"] for each in found])
        | deviation("seconds", [each["seconds"] for each in found])
        for name, found in scores.items()
        if found
    ]


def _variants(
    corpora: dict[str, Corpus], pair: TokenizerPair, folder: Path, config: RunConfig, shared: bool
) -> dict[str, Variant]:
    corpus, held_out = corpora["train"], corpora["heldout"]
    payloads, codecs = _payloads(corpus, folder)
    found: dict[str, Variant] = {}
    if shared:
        theirs = Side(corpus.rows, held_out.rows, pair.teacher)
        found["shared-labels"] = Variant(theirs, LabelsLoss(), partial(_rows_alone, theirs.rows))
        for name in CODECS:
            loss = DistillationLoss(config, codecs[name], None)
            batch = partial(_with_payload, theirs.rows, payloads[name])
            found[f"shared-{name}"] = Variant(theirs, loss, batch)
    own = in_own_tokens(corpus, pair)
    mine = Side(own.rows, in_own_tokens(held_out, pair).rows, pair.student)
    if not shared:
        found["before"] = Variant(mine, None, partial(_rows_alone, mine.rows))
    found["labels"] = Variant(mine, LabelsLoss(), partial(_rows_alone, mine.rows))
    ways: dict[str, tuple[ClassMap, np.ndarray]] = {
        "classes": (class_map(pair, WORKER.device), own.source >= 0),
        "one-by-one": (one_by_one(pair, WORKER.device), equal_spans(own, corpus)),
    }
    for way, (classes, has_target) in ways.items():
        for name in CODECS:
            loss = DistillationLoss(config, codecs[name], None, classes=classes)
            batch = partial(_gathered, own, payloads[name], has_target)
            found[f"{way}-{name}"] = Variant(mine, loss, batch)
    matrix = projection(pair)
    for name in CODECS:
        batch = partial(chunk_batch, own, payloads[name])
        found[f"chunks-{name}"] = Variant(mine, ChunkLoss(codecs[name], matrix), batch)
    return found


def _payloads(corpus: Corpus, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return payload [R, T, bytes] uint8 and codec, by name."""
    varopt = VaroptCodec()
    kept = keep({"varopt": varopt}, corpus, folder / "codecs")["varopt"]
    payloads = {"full": np.asarray(corpus.hidden).view(np.uint8), "varopt": kept.payload}
    codecs = {
        "full": WholeDistribution(corpus.head),
        "varopt": make_codec(varopt, corpus.vocab_size),
    }
    return payloads, codecs


def _rows_alone(rows: Rows, part: np.ndarray) -> MicroBatch:
    made = row_tensors(rows.take(part), WORKER.device)
    return MicroBatch(made, torch.zeros(*made.ids.shape, 0, dtype=torch.uint8), None)


def _with_payload(rows: Rows, payload: np.ndarray, part: np.ndarray) -> MicroBatch:
    made = row_tensors(rows.take(part), WORKER.device)
    return MicroBatch(made, torch.from_numpy(payload[part]), None)


def _gathered(
    own: OwnTokens, payload: np.ndarray, has_target: np.ndarray, part: np.ndarray
) -> MicroBatch:
    source = np.maximum(own.source[part], 0)[:, :, None]
    gathered = np.take_along_axis(payload[part], source, axis=1)
    made = row_tensors(own.rows.take(part), WORKER.device)
    has = torch.from_numpy(has_target[part])
    return MicroBatch(made, torch.from_numpy(gathered), None, has_target=has)


def run_variant(config: RunConfig, variant: Variant, student: Path | None) -> dict[str, float]:
    """Train a student and return its bits a byte on held-out rows."""
    started = time.perf_counter()
    side, training = variant.side, config.distill.training
    plan = plan_student(
        config.distill.student,
        None,
        vocab_size=side.tokens.vocab_size,
        special_ids=side.tokens.info.special_ids,
        seq_len=side.rows.input_ids.shape[1],
    )
    stored = None if student is None else StoredTensors.open(student, plan.config)
    backend = make_backend(
        lambda: build_student(plan, stored, None, config.seed),
        partial(ModelWithHead, vocab_size=side.tokens.vocab_size),
        training,
        1,
        WORKER,
    )
    if variant.loss is not None:
        train(
            backend=backend,
            training=training,
            worker=WORKER,
            start=Progress(),
            steps=_steps(config, variant),
            compute_loss=variant.loss,
            callbacks=Callbacks(validate=lambda: {"loss": 0.0}),
        )
    nats = _nats(backend, side.held_out)
    bits = nats / math.log(2) / target_bytes(side.held_out, side.tokens)
    return {"bits_per_byte": bits, "seconds": time.perf_counter() - started}


def _steps(config: RunConfig, variant: Variant) -> Iterator[Step[Any]]:
    training, rows = config.distill.training, variant.side.rows
    sampler = CurriculumSampler(
        config.distill.curriculum,
        len(rows),
        global_batch_size=training.global_batch_size,
        steps=training.steps,
        seed=config.seed,
    )
    sampler.set_difficulty(0, np.zeros(len(rows)))
    for step in range(training.steps):
        part = sampler.batch(step)
        yield Step([variant.batch(part)], int(rows.loss_mask[part].sum()), part)


@torch.no_grad()
def _nats(backend: Backend, rows: Rows) -> float:
    """Return the summed loss over all targets of `rows`."""
    backend.model.eval()
    total = 0.0
    for row in range(len(rows)):
        made = row_tensors(rows.take(np.array([row])), WORKER.device)
        logits = backend.model(_logits, made.ids, made.segments, made.mask)
        labels = made.labels[made.mask]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return total


def _logits(
    model: ModelWithHead, ids: torch.Tensor, segments: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    return model.head.logits(model.hidden(ids, segments)[mask])


def goals(rows: list[Row]) -> list[Row]:
    """Compare what the student gains with its own tokenizer, and with the teacher's."""
    bits = {row["variant"]: row["bits_per_byte"] for row in rows}
    if not {"shared-labels", "shared-varopt", "labels", "classes-varopt"} <= set(bits):
        return []
    gap = bits["shared-labels"] - bits["shared-varopt"]
    share = (bits["labels"] - bits["classes-varopt"]) / gap
    return [goal("gap_closed_vs_own_tokenizer", share, ">=0.6", gap_bits_per_byte=gap)]


if __name__ == "__main__":
    typer.run(main)
