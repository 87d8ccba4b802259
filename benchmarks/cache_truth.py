"""How far the cache is from what transformers says of each document alone, by architecture.

    python benchmarks/cache_truth.py [--quick]

A tiny teacher of each architecture, with large random weights, short windows and the dropout of its
config, goes through `kdscale run --until cache` as users run it: packed sequences, ZeRO-3, codec
`full`, float32. Then transformers is run on every document by itself; reported is the mean KL over
all targets from its distribution to the cached one, where float16 alone costs about 6e-7. Half a
minute for each of eight architectures.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Quick, Row, goal, kdscale, log, report
from kdscale.cache.read.reader import CacheReader
from kdscale.data.tokenizer import train_tokenizer
from kdscale.store import open_store
from kdscale.types import DenseTargets
from tests.architectures import tiny_model

KINDS = ("gpt2", "opt", "gemma2", "gemma3_text", "mistral", "gpt_oss", "phi3", "olmo3")
GOAL = 2e-6
COMMON_WORDS = "the of and to in is that for it as was with be by on not he his at are"


def main(quick: Quick = False) -> None:
    """Measure each architecture."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for kind in KINDS[:1] if quick else KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append({"architecture": kind, "kl": kl(kind, Path(scratch))})
            log(rows[-1])
    worst = goal("largest_kl", max(row["kl"] for row in rows), f"<={GOAL}")
    report("cache_truth", rows, [worst], keep=not quick)


def write_inputs(kind: str, folder: Path) -> Any:
    """Write a corpus and a teacher of the architecture; return its model."""
    generator = np.random.default_rng(0)
    words = np.array(COMMON_WORDS.split())
    texts = [" ".join(generator.choice(words, n)) for n in generator.integers(4, 60, 300)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_text("\n".join(lines))
    info = train_tokenizer(texts, 300, folder / "teacher")
    model = tiny_model(kind, vocab_size=info.vocab_size)
    model.save_pretrained(folder / "teacher")
    return model


def kl(kind: str, folder: Path) -> float:
    """Run to the cache, and compare it with transformers alone."""
    model = write_inputs(kind, folder)
    config = {
        "name": "truth",
        "output": str(folder / "run"),
        "data": {
            "train": {"kind": "jsonl", "path": str(folder / "corpus")},
            "seq_len": 64,
            "tokenizer": {"kind": "teacher"},
        },
        "teacher": {"load": str(folder / "teacher")},
        "cache": {"codec": {"kind": "full"}, "sequences": 16},
        "distill": {
            "student": {"teacher_layers": [0]},
            "training": {"steps": 1, "global_batch_size": 4},
        },
        "tracking": {"wandb": "disabled"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    kdscale(folder / "run.yaml", folder / "run", {}, "--until", "cache")
    return mean_kl(model, folder / "run")


@torch.no_grad()
def mean_kl(model: Any, output: Path) -> float:
    """Return the mean KL over the targets of the one cache in `output`."""
    (cache,) = (output / "cache").iterdir()
    reader = CacheReader(open_store(str(cache)))
    read = reader.read(np.arange(len(reader)))
    targets = reader.codec.decode(torch.from_numpy(read.payload.copy()))
    assert isinstance(targets, DenseTargets)
    total, count = 0.0, 0
    for row in range(len(reader)):
        ids, segments = read.rows.input_ids[row], read.rows.segment_ids[row]
        mask = read.rows.loss_mask[row].astype(bool)
        for segment in np.unique(segments[mask]):
            here = segments == segment
            logits = model(torch.from_numpy(ids[here]).long()[None], use_cache=False).logits
            cached = targets.log_probs[row, torch.from_numpy(here & mask)].double()
            own = logits[0, mask[here], : cached.shape[-1]].double().log_softmax(-1)
            cached = cached.log_softmax(-1)  # float16 leaves a sum that is not quite 1
            total += (own.exp() * (own - cached)).sum().item()
            count += int(mask[here].sum())
    return total / count


if __name__ == "__main__":
    typer.run(main)
