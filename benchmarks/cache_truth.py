"""How far the cache is from what transformers says of each document alone, by architecture.

    python benchmarks/cache_truth.py [--quick] [--before CHECKOUT]

A tiny teacher of each architecture, with large random weights, short windows and the dropout of its
config, goes through `kdscale run --until cache` as users run it: packed rows, ZeRO-3, codec `full`,
float32. Then transformers is run on every document by itself; reported is the mean KL over all
targets from its distribution to the cached one, where float16 alone costs about 6e-7.

With `--before`, the same is done with the code of another checkout of kdscale. The last line is one
JSON object, also kept in results/cache_truth.json; --quick takes one architecture and keeps
nothing. A run takes about 40 seconds.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
import yaml

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from kdscale.cache.read.reader import CacheReader  # noqa: E402  after the path is set
from kdscale.data.tokenizer import train_tokenizer  # noqa: E402
from kdscale.store import open_store  # noqa: E402
from kdscale.types import DenseTargets  # noqa: E402
from tests.architectures import tiny_model  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "cache_truth.json"
KINDS = ("gpt2", "opt", "gemma2", "gemma3_text", "mistral", "gpt_oss", "phi3", "olmo3")
GOAL = 2e-6
COMMON_WORDS = "the of and to in is that for it as was with be by on not he his at are"
RUN = "import sys; from kdscale.cli import main; sys.argv[0] = 'kdscale'; main()"


def main(
    quick: bool = typer.Option(False, help="One architecture, to see that it works."),
    before: Path = typer.Option(None, help="Another checkout of kdscale to compare with."),
) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for kind in KINDS[:1] if quick else KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = write_inputs(kind, folder)
            row: dict[str, Any] = {"architecture": kind, "kl": kl(model, folder, ROOT)}
            if before is not None:
                row["kl_before"] = kl(model, folder, before.resolve())
        rows.append(row)
        print(row, flush=True)
    found = {
        "benchmark": "cache_truth",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "transformers")},
        "rows": rows,
        "goals": [{"name": "largest_kl", "value": max(r["kl"] for r in rows), "goal": GOAL}],
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


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


def kl(model: Any, folder: Path, checkout: Path) -> float:
    """Run to the cache with the code of `checkout`, and compare."""
    output = folder / checkout.name
    config = {
        "name": "truth",
        "output": str(output),
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
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", str(folder / "run.yaml"), "--until", "cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return mean_kl(model, output)


@torch.no_grad()
def mean_kl(model: Any, output: Path) -> float:
    """Mean KL over the targets of the one cache in `output`."""
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
