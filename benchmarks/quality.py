"""What a student of a cache is worth, by bytes, between labels alone and the full distribution.

    python benchmarks/assets.py
    python benchmarks/quality.py [--quick] [--assets FOLDER] [--keep FOLDER] [--seeds 3]

SmolLM2-135M-Instruct is the teacher, 102,400 tokens of BBC news the corpus, and the student has
three of the teacher's layers at a third of its width. All arms of a seed start from the same
weights and meet the same rows in the same order, once:

    labels          cross-entropy alone: where the way begins
    full            the teacher's whole distribution: where it ends. Its last hidden states are
                    multiplied by its head again: the online teacher, without the wait
    topk-K          K ids and a ghost bucket for the rest; `renormalised` scales them up to 1, as
                    rivals do (in this benchmark only)
    sample-N        Random-Sampling KD, N draws (arXiv 2503.16870); published at 3 bytes an id
    varopt-B        2 head values and as many ids as fit in B bytes at rest, prior included; the
                    default is varopt-20
    varopt-B-head-4 the same with 4 head values in place of 2

Scores are of held-out articles. An arm that is finished is kept in --keep and not run again, so a
run that was stopped goes on where it was. The last line is one JSON object, also kept in
results/quality.json; --quick trains a few steps and keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.ablation.corpus import Corpus, load_corpora  # noqa: E402  after the path is set
from benchmarks.ablation.kept import (  # noqa: E402
    Kept,
    Renormalised,
    WholeDistribution,
    keep,
)
from benchmarks.ablation.noise import gradient_noise  # noqa: E402
from benchmarks.ablation.setting import (  # noqa: E402
    BATCH_ROWS,
    HELD_OUT_ROWS,
    ROW_LENGTH,
    ROWS,
    arguments_of,
    make_config,
    once,
)
from benchmarks.ablation.student import Arm, Students, run_arm, train_student  # noqa: E402
from kdscale.cache.codecs import make_codec  # noqa: E402
from kdscale.config.cache import CodecConfig, SampleCodec, TopkCodec, VaroptCodec  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "quality.json"
VAROPT = {8: 5, 12: 8, 16: 12, 20: 16, 24: 20, 32: 29}  # {bytes at rest: the most ids that fit}
HEAD_4 = {16: 10, 24: 17, 32: 24}
CODECS: dict[str, CodecConfig] = {
    **{f"topk-{k}": TopkCodec(k=k) for k in (12, 50)},
    **{f"sample-{n}": SampleCodec(draws=n) for n in (12, 25, 50)},
    **{f"varopt-{budget}": VaroptCodec(k=k, head=2) for budget, k in VAROPT.items()},
    **{f"varopt-{budget}-head-4": VaroptCodec(k=k, head=4) for budget, k in HEAD_4.items()},
}
"""Of every arm that has one."""
PUBLISHED_BYTES = 3.0  # of an id of Random-Sampling KD: 17 bits of id and 7 of count


def main(
    quick: bool = typer.Option(False, help="A few steps, to see that it works."),
    assets: Path = typer.Option(ROOT / "assets", help="Folder that assets.py wrote."),
    keep_in: Path = typer.Option(ROOT / "runs" / "quality", "--keep", help="What is finished."),
    seeds: int = typer.Option(3, min=1, help="Students of each arm."),
    rows: int = typer.Option(ROWS, min=1, help="Rows of the one pass."),
    global_batch_size: int = typer.Option(BATCH_ROWS, min=1, help="Rows of a step."),
) -> None:
    """Measure all arms, print and keep."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        rows, seeds = (4 * global_batch_size, 1) if quick else (rows, seeds)
        counts = {"train": rows, "heldout": 2 if quick else HELD_OUT_ROWS}
        corpora = load_corpora(assets, folder, ROW_LENGTH, counts)
        train, held_out = corpora["train"], corpora["heldout"]
        found = measure(train, held_out, assets, folder, range(seeds), global_batch_size)
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def measure(
    train: Corpus,
    held_out: Corpus,
    assets: Path,
    folder: Path,
    seeds: range,
    global_batch_size: int,
) -> dict[str, Any]:
    """All arms at all seeds, the noise of their gradients, and the goals."""
    teacher = assets / "smollm2-135m-instruct"
    kept = keep(CODECS, train, folder / "codecs")
    arms = {"labels": Arm(), **targets_of(train, kept)}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for seed in seeds:
        config = make_config(len(train), seed, global_batch_size=global_batch_size)
        students = Students(config, teacher, train)
        for name, arm in arms.items():
            codec = CODECS.get(name)
            settings = [arguments_of(config), codec and codec.model_dump()]
            run = partial(run_arm, config, students, train, held_out, arm, np.zeros(len(train)))
            scores[name].append(once(folder / "arms", f"{name}-{seed}", settings, run))
    rows = [{**size_of(name, kept.get(name)), **summary(name, scores)} for name in arms]
    config = make_config(len(train), 0, global_batch_size=global_batch_size)
    students = Students(config, teacher, train)
    trained = train_student(config, students, train, arms["full"], np.zeros(len(train)))
    return {
        "benchmark": "quality",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "transformers")},
        "tokens": train.targets,
        "held_out_tokens": held_out.targets,
        "positions_a_step": global_batch_size * ROW_LENGTH,
        "seeds": len(seeds),
        "rows": rows,
        "noise": gradient_noise(trained, config, train, arms),
        "goals": goals(rows),
    }


def targets_of(train: Corpus, kept: dict[str, Kept]) -> dict[str, Arm]:
    """What every arm but `labels` learns from."""
    hidden = np.asarray(train.hidden).view(np.uint8)
    arms = {"full": Arm(hidden, WholeDistribution(train.head))}
    for name, config in CODECS.items():
        codec = make_codec(config, train.vocab_size)
        arms[name] = Arm(kept[name].payload, codec)
        if config.kind == "topk":
            arms[f"{name}-renormalised"] = Arm(kept[name].payload, Renormalised(codec))
    return arms


def size_of(name: str, kept: Kept | None) -> dict[str, Any]:
    """What an arm is, and what it takes."""
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


def summary(name: str, scores: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Mean and deviation over seeds; shares of the way from `labels` to `full`, seed by seed."""
    found: dict[str, Any] = {}
    for score in ("loss", "kl", "agreement", "ece"):
        values = [each[score] for each in scores[name]]
        found |= {score: statistics.mean(values), f"{score}_deviation": _deviation(values)}
    for score in ("loss", "kl"):
        ends = zip(scores["labels"], scores["full"], scores[name], strict=True)
        shares = [
            (labels[score] - arm[score]) / (labels[score] - full[score])
            for labels, full, arm in ends
        ]
        found |= {
            f"gap_closed_{score}": statistics.mean(shares),
            f"gap_closed_{score}_deviation": _deviation(shares),
        }
    return found


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DESIGN.md section 8: at 24 bytes, and beside Random-Sampling KD."""
    arms = {row["arm"]: row for row in rows}
    best = arms["varopt-24"]
    found = [
        {"name": "gap_closed_loss_24_bytes", "value": best["gap_closed_loss"], "goal": ">=0.9"},
        {"name": "gap_closed_kl_24_bytes", "value": best["gap_closed_kl"], "goal": ">=0.95"},
    ]
    for draws in (25, 50):
        rival = arms[f"sample-{draws}"]
        as_good = [
            (row["bytes_at_rest"], name)
            for name, row in arms.items()
            if name.startswith("varopt") and row["kl"] <= rival["kl"]
        ]
        least, name = min(as_good, default=(None, None))
        found.append(
            {
                "name": f"bytes_vs_random_sampling_{draws}",
                "value": least and least / rival["bytes_published"],
                "goal": "<=0.5",
                "arm": name,
            }
        )
    return found


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    typer.run(main)
