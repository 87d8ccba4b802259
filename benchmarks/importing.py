"""What an import keeps of the sets that other tools capture, and how fast it is.

    python benchmarks/importing.py [--quick]

SmolLM2-135M-Instruct runs over BBC news. Its distributions are written as DistillKit writes them
(three settings of its README), as Megatron-LM's tars, and as plain columns of the top 20; each set
is imported by the command and verified. Reported: bytes a token of set and cache, tokens a second
of CPU time (start included), and the mean distance sum |t - p| of the cached target from the
teacher's own distribution, over the listed ids and one bucket for the rest: what the tool lost, and
what float16 loses. The sets are written in float64; DistillKit's own fit is solved in float32.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import ASSETS, TEACHER, Assets, Quick, Row, goal, log, report
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.reader import CacheReader
from kdscale.cli import main as kdscale
from kdscale.store import open_store
from kdscale.types import SparseTargets
from tests.unit.importing.sets import (
    BUDGET,
    PUBLISHED,
    RECOMMENDED,
    Source,
    column_rows,
    write_distillkit,
    write_megatron,
    write_parquet,
    write_samples,
)

LENGTH, SAMPLES, KEPT = 257, 24, 128


@dataclass(frozen=True)
class Top(Source):
    """A source of which only the most probable ids are kept, sorted: [n, KEPT]."""

    ids: list[np.ndarray]

    def top(self, number: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See Source."""
        return self.ids[number][:, :k], self.log_probs[number][:, :k]


def main(quick: Quick = False, assets: Assets = ASSETS) -> None:
    """Import every set."""
    source, vocab_size = capture(assets, 4 if quick else SAMPLES)
    sets: dict[str, Callable[[Path], object]] = {
        "DistillKit, recommended": distillkit(source, RECOMMENDED | {"d": vocab_size}),
        "DistillKit, budget": distillkit(source, BUDGET | {"d": vocab_size}),
        "DistillKit, published": distillkit(source, PUBLISHED | {"d": vocab_size}),
        "Megatron-LM, top 64": lambda folder: write_megatron(
            folder, source, k=64, version=2, ranks=2, micro_batch=2
        ),
        "columns, top 20": lambda folder: write_parquet(
            made(folder) / "a.parquet", column_rows(source, 20, "inner")
        ),
    }
    rows = []
    for name, write in sets.items():
        with tempfile.TemporaryDirectory() as scratch:
            rows.append({"set": name} | measure(write, source, Path(scratch), assets / TEACHER))
            log(rows[-1])
    distance = next(row["distance"] for row in rows if row["set"].startswith("columns"))
    report("importing", rows, [goal("distance_of_columns", distance, "<=0.001")], keep=not quick)


def capture(assets: Path, samples: int) -> tuple[Top, int]:
    """Run the teacher; return its most probable ids, and the size of its vocabulary."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets / TEACHER
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lines = (assets / "bbc" / "heldout.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    rows = (tokenizer(text)["input_ids"] for text in texts)
    tokens = [np.array(row[:LENGTH]) for row in rows if len(row) >= LENGTH][:samples]
    ids, values = [], []
    with torch.no_grad():
        for row in tokens:
            logits = model(torch.from_numpy(row)[None]).logits[0, :, : len(tokenizer)]
            top = torch.log_softmax(logits.double(), -1).topk(KEPT)
            ids.append(top.indices.numpy())
            values.append(top.values.numpy())
    return Top(tokens, values, ids), len(tokenizer)


def distillkit(source: Source, config: dict[str, Any]) -> Callable[[Path], object]:
    """Return a writer of the set."""
    return lambda folder: write_distillkit(folder, source, config, rows_per_file=8)


def made(folder: Path) -> Path:
    """Return the folder, which is made."""
    folder.mkdir()
    return folder


def measure(write: Callable[[Path], object], source: Top, scratch: Path, teacher: Path) -> Row:
    """Write a set, import it by the command, verify it, and hold it against the teacher."""
    folder, out, samples = scratch / "set", scratch / "out", scratch / "samples.parquet"
    write(folder)
    write_samples(samples, source)
    options = ["--teacher", str(teacher), "--no-pack", "--tokens", str(samples)]
    started = time.process_time()
    with suppress(SystemExit):
        kdscale(["cache", "import", str(folder), str(out), *options])
    seconds = time.process_time() - started
    store = open_store(str(out))
    assert not verify(store).bad
    facts, tokens = inspect(store), sum(map(len, source.tokens))
    return {
        "k": facts["codec"]["k"],
        "set_bytes_token": sum(f.stat().st_size for f in folder.iterdir()) / tokens,
        "cache_bytes_token": facts["bytes_per_position"],
        "tokens_cpu_second": tokens / seconds,
        "distance": distance(CacheReader(store), source),
    }


def distance(reader: CacheReader, source: Top) -> float:
    """Return the mean over targets of sum |t - p| over the k ids and the rest."""
    total, count = 0.0, 0
    for number in range(len(reader)):
        cached = reader.read(np.array([number]))
        targets = reader.codec.decode(torch.from_numpy(cached.payload[0]))
        assert isinstance(targets, SparseTargets)
        assert targets.ghost is not None
        assert np.array_equal(cached.rows.input_ids[0], source.tokens[number])
        ids, values = source.top(number, targets.ids.shape[-1])
        for at in np.flatnonzero(cached.rows.loss_mask[0]):
            found = dict(zip(targets.ids[at].tolist(), targets.probs[at].tolist(), strict=True))
            p = np.exp(values[at])
            pairs = zip(ids[at].tolist(), p, strict=True)
            total += sum(abs(found.get(token, 0.0) - own) for token, own in pairs)
            total += abs(float(targets.ghost[at]) - (1 - float(p.sum())))
            count += 1
    return total / count


if __name__ == "__main__":
    typer.run(main)
