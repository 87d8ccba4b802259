"""Memory of `prepare` over a corpus larger than it, and the cost of a kill half-way.

    python benchmarks/prepare_memory.py [--quick] [--gigabytes 5] [--no-compare] [--folder FOLDER]

Makes a corpus of JSON lines from the text of the interpreter's standard library: documents of about
2 kB, each of randomly chosen passages, so that no two are alike. `kdscale run --only prepare` goes
over it on this machine's Ray with two cores, in a process that is killed (SIGKILL of the driver)
when half of the documents are tokenised, and started again. Unless --no-compare, it is then made
once more in another place, undisturbed; both must be equal byte for byte.

Memory is the proportional set size (/proc/PID/smaps_rollup) of the driver and all its descendants:
Ray's processes, the workers, and the object store, which is shared memory that they map; each page
counts once. A sample every half second.

Corpus and output take up to four times the corpus on the disk, and are deleted at the end. The last
line is one JSON object; its rows take the place of those of the same size in
results/prepare_memory.json. --quick takes 50 MB and keeps nothing.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import psutil
import typer
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, ROOT, Quick, Row, goal, log, report

FILE_BYTES = 128 * 10**6
PASSAGES, PASSAGE_LINES = 6, 10
SAMPLE_SECONDS = 0.5
MODEL = {
    "architecture": "llama",
    "options": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}


def main(
    quick: Quick = False,
    gigabytes: Annotated[float, typer.Option(help="Text of the corpus, in 10^9 bytes.")] = 5.0,
    compare: Annotated[bool, typer.Option(help="Make it again, undisturbed, and compare.")] = True,
    folder: Annotated[Path | None, typer.Option(help="Where corpus and output are made.")] = None,
) -> None:
    """Make the corpus, measure, print and keep."""
    size = 0.05 if quick else gigabytes
    with tempfile.TemporaryDirectory(prefix="kdscale-prepare-", dir=folder) as scratch:
        rows = measure(Path(scratch), size, compare)
    kept = RESULTS / "prepare_memory.json"
    if kept.exists() and not quick:
        others = [row for row in json.loads(kept.read_text())["rows"] if row["gigabytes"] != size]
        rows = sorted([*others, *rows], key=lambda row: row["gigabytes"])
    report("prepare_memory", rows, goals(rows), keep=not quick)


def measure(folder: Path, gigabytes: float, compare: bool) -> list[Row]:
    """Return a row for each run."""
    corpus = {"gigabytes": gigabytes}
    corpus["documents"] = write_corpus(folder / "corpus", round(10**9 * gigabytes))
    killed = Prepare(folder, "killed")
    killed.kill_half_way()
    again = Prepare(folder, "killed")
    again.wait()
    rows = [
        {**corpus, "run": "killed half-way", **killed.figures()},
        {**corpus, "run": "started again", **again.figures()},
    ]
    if compare:
        whole = Prepare(folder, "whole")
        whole.wait()
        equal = whole.digests() == again.digests()
        rows.append({**corpus, "run": "undisturbed", **whole.figures(), "equal": equal})
    for row in rows:
        log(row)
    return rows


def goals(rows: list[Row]) -> list[Row]:
    """Return the peak of the largest corpus, and whether every comparison was equal."""
    largest = max(row["gigabytes"] for row in rows)
    peak = max(row["peak_bytes"] for row in rows if row["gigabytes"] == largest)
    equal = [int(row["equal"]) for row in rows if "equal" in row]
    found = [goal(f"peak_gib_{largest:g}_gb", peak / 2**30, "<4")]
    return [*found, goal("equal_after_kill", min(equal), ">=1")] if equal else found


def write_corpus(folder: Path, text_bytes: int) -> int:
    """Write files of JSON lines and return the number of documents."""
    folder.mkdir()
    made = documents = 0
    texts = passages(random.Random(0))
    for number in range(-(-text_bytes // FILE_BYTES)):
        most = min(text_bytes, made + FILE_BYTES)
        with (folder / f"{number:04d}.jsonl").open("w", encoding="utf-8") as file:
            while made < most:
                text = next(texts)
                file.write(json.dumps({"text": text}) + "\n")
                made += len(text.encode())
                documents += 1
    return documents


def passages(chance: random.Random) -> Iterator[str]:
    """Yield documents without end, of passages of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(library.rglob("*.py")) if "-packages" not in str(path)]
    lines: list[str] = []
    for path in files:
        with suppress(UnicodeDecodeError):
            lines += path.read_text(encoding="utf-8").splitlines(keepends=True)
    while True:
        starts = [chance.randrange(len(lines) - PASSAGE_LINES) for _ in range(PASSAGES)]
        yield "".join("".join(lines[at : at + PASSAGE_LINES]) for at in starts)


class Prepare:
    """`kdscale run --only prepare` in a process that is watched from its start."""

    def __init__(self, folder: Path, name: str) -> None:
        config = {
            "name": name,
            "output": str(folder / name),
            "data": {
                "train": {"kind": "jsonl", "path": str(folder / "corpus")},
                "validation_share": 0.01,
                "tokenizer": {"kind": "train", "vocab_size": 8192, "sample_documents": 20_000},
                "seq_len": 512,
            },
            "teacher": {"model": MODEL, "training": {"steps": 1, "global_batch_size": 2}},
            "distill": {
                "student": {"model": MODEL},
                "training": {"steps": 1, "global_batch_size": 2},
            },
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        self._output = folder / name
        self._log = (folder / f"{name}.log").open("ab")
        self.peak: dict[str, int] = {}
        self.driver_peak = 0
        self.most = {"cleaned": 0, "tokenised": 0}
        self._started = time.perf_counter()
        self._process = psutil.Popen(
            [str(Path(sys.executable).with_name("kdscale")), "run", str(path), "--only", "prepare"],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def wait(self) -> None:
        """Wait for its end; SystemExit with the log where it failed."""
        code = self._process.wait()
        self._end()
        if code:
            raise SystemExit(Path(self._log.name).read_text()[-4000:])

    def kill_half_way(self) -> None:
        """Kill the driver when half of the parts are tokenised; Ray's processes end with it."""
        while not 0 < self.most["cleaned"] <= 2 * self.most["tokenised"]:
            if self._process.poll() is not None:
                raise SystemExit("The run ended before it was to be killed.")
            time.sleep(SAMPLE_SECONDS)
        family = self._process.children(recursive=True)
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=60)
        self._end()

    def figures(self) -> Row:
        """Return time and memory."""
        return {
            "seconds": round(self.seconds, 1),
            "peak_bytes": sum(self.peak.values()),
            "peak_of": self.peak,
            "driver_peak_bytes": self.driver_peak,
            "parts": dict(self.most),
        }

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file of the prepared data."""
        [manifest] = self._output.glob("prepared/*/manifest.json")
        found = {}
        for path in sorted(manifest.parent.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    name = str(path.relative_to(manifest.parent))
                    found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def _end(self) -> None:
        self.seconds = time.perf_counter() - self._started
        self._ended.set()
        self._watcher.join()
        self._log.close()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            held = {"driver": _pss(self._process.pid), "workers": 0, "ray": 0}
            with suppress(psutil.Error):
                for each in self._process.children(recursive=True):
                    kind = "workers" if each.name().startswith("ray::") else "ray"
                    held[kind] += _pss(each.pid)
            if sum(held.values()) > sum(self.peak.values()):
                self.peak = held
            self.driver_peak = max(self.driver_peak, held["driver"])
            names = [str(path) for path in self._output.glob("prepared/*/work/*/train/**/*")]
            for what, suffix in (("cleaned", ".texts"), ("tokenised", ".tokens")):
                count = sum(name.endswith(suffix) for name in names)
                self.most[what] = max(self.most[what], count)


def _pss(pid: int) -> int:
    """Return the proportional set size in bytes; 0 where the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    typer.run(main)
