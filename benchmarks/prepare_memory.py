"""What `prepare` takes of memory for a corpus larger than it, and what a kill half-way costs.

    python benchmarks/prepare_memory.py [--gigabytes 5] [--no-compare] [--folder DIR] [--keep]

Makes a corpus of JSON lines from the text of the interpreter's standard library: documents of about
2 kB, each of randomly chosen passages, so that no two are alike. `kdscale run --only prepare` goes
over it on this machine's Ray with two cores, in a process of its own, which is killed (SIGKILL of
the driver) when half of the documents are tokenised, and started again. Unless --no-compare, it is
then made once more in another place, undisturbed; both must be equal byte for byte.

Memory is the proportional set size (/proc/PID/smaps_rollup) of the driver and all its descendants:
Ray's own processes, the workers, and the object store, which is shared memory that they map; each
page counts once. A sample every half second.

Corpus and output take three times the corpus on the disk, four at the peak, and go at the end
unless --keep. The last line is one JSON object; its rows take the place of those of the same size
in results/prepare_memory.json. --quick takes 50 MB and keeps nothing.
"""

import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import typer
import yaml

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results" / "prepare_memory.json"
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
    gigabytes: float = typer.Option(5.0, help="Text of the corpus, in 10^9 bytes."),
    compare: bool = typer.Option(True, help="Make it once more, undisturbed, and compare."),
    folder: Path | None = typer.Option(None, help="Where corpus and output are made."),
    keep: bool = typer.Option(False, help="Leave corpus and outputs where they are."),
    quick: bool = typer.Option(False, help="50 MB, to see that it works."),
) -> None:
    """Make the corpus, measure, print and keep."""
    here = Path(tempfile.mkdtemp(prefix="kdscale-prepare-", dir=folder))
    print(f"working in {here}", flush=True)
    size = 0.05 if quick else gigabytes
    try:
        rows = measure(here, size, compare)
    finally:
        if not keep:
            shutil.rmtree(here, ignore_errors=True)
    if KEPT.exists() and not quick:
        kept = json.loads(KEPT.read_text())["rows"]
        rows = [*(row for row in kept if row["gigabytes"] != size), *rows]
        rows.sort(key=lambda row: row["gigabytes"])
    found = {
        "benchmark": "prepare_memory",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "ray", "pyarrow", "tokenizers")},
        "rows": rows,
        "goals": goals(rows),
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def measure(folder: Path, gigabytes: float, compare: bool) -> list[dict[str, Any]]:
    """A row for each run."""
    started = time.perf_counter()
    documents = write_corpus(folder / "corpus", round(10**9 * gigabytes))
    print(f"{documents:,} documents in {time.perf_counter() - started:.0f} s", flush=True)
    killed = Prepare(folder, "killed")
    killed.kill_half_way()
    print(f"killed: {killed.told()}", flush=True)
    again = Prepare(folder, "killed")
    again.wait()
    print(f"started again: {again.told()}", flush=True)
    corpus = {"gigabytes": gigabytes, "documents": documents}
    rows = [
        {**corpus, "run": "killed half-way", **killed.told()},
        {**corpus, "run": "started again", **again.told()},
    ]
    if compare:
        whole = Prepare(folder, "whole")
        whole.wait()
        print(f"undisturbed: {whole.told()}", flush=True)
        equal = whole.digests() == again.digests()
        rows.append({**corpus, "run": "undisturbed", **whole.told(), "equal": equal})
    return rows


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Peak of the largest corpus; whether every comparison was equal."""
    largest = max(row["gigabytes"] for row in rows)
    peak = max(row["peak_bytes"] for row in rows if row["gigabytes"] == largest)
    equal = min((int(row["equal"]) for row in rows if "equal" in row), default=None)
    found = [
        {"name": f"peak_gib_{largest:g}_gb", "value": peak / 2**30, "goal": "<4"},
        {"name": "equal_after_kill", "value": equal, "goal": ">=1"},
    ]
    return [goal for goal in found if goal["value"] is not None]


def write_corpus(folder: Path, text_bytes: int) -> int:
    """Files of JSON lines; how many documents they hold."""
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
    """Documents without end, of passages of the standard library."""
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
    """`kdscale run --only prepare` in a process of its own, watched from its start."""

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
        """Until it has ended well."""
        code = self._process.wait()
        self._end()
        if code:
            raise SystemExit(Path(self._log.name).read_text()[-4000:])

    def kill_half_way(self) -> None:
        """kill -9 of the driver when half of the parts are tokenised; Ray's own follow it."""
        while not 0 < self.most["cleaned"] <= 2 * self.most["tokenised"]:
            if self._process.poll() is not None:
                raise SystemExit("The run ended before it was to be killed.")
            time.sleep(SAMPLE_SECONDS)
        family = self._process.children(recursive=True)
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=60)
        self._end()

    def told(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "seconds": round(self.seconds, 1),
            "peak_bytes": sum(self.peak.values()),
            "peak_of": self.peak,
            "driver_peak_bytes": self.driver_peak,
            "parts": dict(self.most),
        }

    def digests(self) -> dict[str, str]:
        """sha256 of every file of the prepared data."""
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
    """Proportional set size in bytes; 0 of a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    typer.run(main)
