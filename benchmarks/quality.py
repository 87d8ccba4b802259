"""Quality of students by bytes of their cache, between labels alone and the full distribution.

    python benchmarks/assets.py
    python benchmarks/quality.py [--quick] [--assets FOLDER] [--keep FOLDER] [--seeds 3]

SmolLM2-135M-Instruct is the teacher, 102,400 tokens of BBC news the corpus, and the student has
three of the teacher's layers at a third of its width. All variants of a seed start from the same
weights and meet the same rows in the same order, once:

    labels          cross-entropy alone: where the way begins
    full            the teacher's whole distribution: where it ends. Its last hidden states are
                    multiplied by its head again: the online teacher, without the wait
    topk-K          K ids and a ghost bucket for the rest; `renormalised` scales them up to 1, as
                    rivals do (in this benchmark only)
    sample-N        Random-Sampling KD, N draws (arXiv 2503.16870); published at 3 bytes an id
    varopt-B        2 head values and as many ids as fit in B stored bytes, prior included; the
                    default is varopt-20
    varopt-B-head-4 the same with 4 head values in place of 2

Scores are of held-out articles. A finished variant is kept in --keep and not run again, so a run
that was stopped resumes there. The last line is one JSON object, also kept in results/quality.json;
--quick trains a few steps and keeps nothing.
"""

import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ablation.corpus import Corpus, load_corpora
from benchmarks.ablation.kept import Kept, Renormalised, WholeDistribution, keep
from benchmarks.ablation.noise import gradient_noise
from benchmarks.ablation.setting import (
    BATCH_ROWS,
    HELD_OUT_ROWS,
    ROW_LENGTH,
    ROWS,
    arguments_of,
    make_config,
    once,
)
from benchmarks.ablation.student import Students, Variant, run_variant, train_student
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
from kdscale.config.cache import CodecConfig, SampleCodec, TopkCodec, VaroptCodec

VAROPT = {8: 5, 12: 8, 16: 12, 20: 16, 24: 20, 32: 29}  # {bytes at rest: the most ids that fit}
HEAD_4 = {16: 10, 24: 17, 32: 24}
CODECS: dict[str, CodecConfig] = {
    **{f"topk-{k}": TopkCodec(k=k) for k in (12, 50)},
    **{f"sample-{n}": SampleCodec(draws=n) for n in (12, 25, 50)},
    **{f"varopt-{budget}": VaroptCodec(k=k, head=2) for budget, k in VAROPT.items()},
    **{f"varopt-{budget}-head-4": VaroptCodec(k=k, head=4) for budget, k in HEAD_4.items()},
}
PUBLISHED_BYTES = 3.0  # of an id of Random-Sampling KD: 17 bits of id and 7 of count


def main(
    quick: Quick = False,
    assets: Assets = ASSETS,
    keep_in: Keep = ROOT / "runs" / "quality",
    seeds: Seeds = 3,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the one pass.")] = ROWS,
    global_batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = BATCH_ROWS,
) -> None:
    """Measure all variants, print and keep."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        rows, seeds = (4 * global_batch_size, 1) if quick else (rows, seeds)
        counts = {"train": rows, "heldout": 2 if quick else HELD_OUT_ROWS}
        corpora = load_corpora(assets, folder, ROW_LENGTH, counts)
        train, held_out = corpora["train"], corpora["heldout"]
        found, noise = measure(
            train, held_out, assets / TEACHER, folder, range(seeds), global_batch_size
        )
    report(
        "quality",
        found,
        goals(found),
        keep=not quick,
        tokens=train.targets,
        held_out_tokens=held_out.targets,
        positions_a_step=global_batch_size * ROW_LENGTH,
        seeds=seeds,
        noise=noise,
    )


def measure(
    train: Corpus,
    held_out: Corpus,
    teacher: Path,
    folder: Path,
    seeds: range,
    global_batch_size: int,
) -> tuple[list[Row], list[Row]]:
    """Return the rows of all variants at all seeds, and the noise of their gradients."""
    kept = keep(CODECS, train, folder / "codecs")
    variants = {"labels": Variant(), **targets_of(train, kept)}
    unordered = np.zeros(len(train))
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for seed in seeds:
        config = make_config(len(train), seed, global_batch_size=global_batch_size)
        students = Students(config, teacher, train)
        for name, variant in variants.items():
            codec = CODECS.get(name)
            settings = [arguments_of(config), codec and codec.model_dump()]
            run = partial(run_variant, config, students, train, held_out, variant, unordered)
            scores[name].append(once(folder / "arms", f"{name}-{seed}", settings, run))
    rows = [{**size_of(name, kept.get(name)), **summary(name, scores)} for name in variants]
    config = make_config(len(train), 0, global_batch_size=global_batch_size)
    students = Students(config, teacher, train)
    trained = train_student(config, students, train, variants["full"], unordered)
    return rows, gradient_noise(trained, config, train, variants)


def targets_of(train: Corpus, kept: dict[str, Kept]) -> dict[str, Variant]:
    """Return the targets of every variant but `labels`."""
    hidden = np.asarray(train.hidden).view(np.uint8)
    variants = {"full": Variant(hidden, WholeDistribution(train.head))}
    for name, config in CODECS.items():
        codec = make_codec(config, train.vocab_size)
        variants[name] = Variant(kept[name].payload, codec)
        if config.kind == "topk":
            variants[f"{name}-renormalised"] = Variant(kept[name].payload, Renormalised(codec))
    return variants


def size_of(name: str, kept: Kept | None) -> Row:
    """Return codec and bytes of a variant."""
    config = CODECS.get(name)
    if kept is None or config is None:
        return {"arm": name}
    published = PUBLISHED_BYTES * kept.distinct_ids if config.kind == "sample" else None
    return {
        "arm": name,
        "codec": config.model_dump(),
        "bytes_decoded": kept.bytes_decoded,
        "bytes_at_rest": kept.bytes_at_rest,
        "bytes_published": published,
        "distinct_ids": kept.distinct_ids,
    }


def summary(name: str, scores: dict[str, list[dict[str, float]]]) -> Row:
    """Return scores over seeds, and shares of the way from `labels` to `full`, seed by seed."""
    found: Row = {}
    for score in ("loss", "kl", "agreement", "ece"):
        found |= deviation(score, [each[score] for each in scores[name]])
    for score in ("loss", "kl"):
        ends = zip(scores["labels"], scores["full"], scores[name], strict=True)
        shares = [
            (labels[score] - own[score]) / (labels[score] - full[score])
            for labels, full, own in ends
        ]
        found |= deviation(f"gap_closed_{score}", shares)
    return found


def goals(rows: list[Row]) -> list[Row]:
    """Compare 24 bytes with the full distribution, and `varopt` with Random-Sampling KD."""
    variants = {row["arm"]: row for row in rows}
    best = variants["varopt-24"]
    found = [
        goal("gap_closed_loss_24_bytes", best["gap_closed_loss"], ">=0.9"),
        goal("gap_closed_kl_24_bytes", best["gap_closed_kl"], ">=0.95"),
    ]
    for draws in (25, 50):
        rival = variants[f"sample-{draws}"]
        as_good = [
            (row["bytes_at_rest"], name)
            for name, row in variants.items()
            if name.startswith("varopt") and row["kl"] <= rival["kl"]
        ]
        least, name = min(as_good, default=(None, None))
        share = least and least / rival["bytes_published"]
        found.append(goal(f"bytes_vs_random_sampling_{draws}", share, "<=0.5", arm=name))
    return found


if __name__ == "__main__":
    typer.run(main)
