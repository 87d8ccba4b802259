"""Process of one reader: it writes its format, reads epochs, stops halfway, resumes.

    python -m benchmarks.peers.measure JOB.json

The job names the task, the reader, the place and the file for the result. A process for each
measurement keeps the threads, caches and memory of readers apart; importing libraries is not
measured. Timed epochs do nothing with a batch but count it. The rows are compared
with what was written by the tasks `stop` and `resume`, which between them see the whole epoch.
"""

import importlib
import json
import multiprocessing
import os
import pickle
import re
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.peers.contract import BATCH_ROWS, Batch, Place, Records

Job = dict[str, Any]
Result = dict[str, Any]


def write(job: Job) -> Result:
    """Write the records in the formats of `readers`, each to a folder of its name in `formats`."""
    records = Records.load(Path(job["records"]))
    found = {}
    for name in job["arms"]:
        reader = _reader(name)
        reader.write(records, Path(job["formats"]) / name)
        found[name] = {
            "versions": {name: version(name) for name in reader.PACKAGES},
            "resume": reader.RESUME,
        }
    return found


def epochs(job: Job) -> Result:
    """Measure two epochs of at most `seconds` each: `cold` from opening on, then `warm`.

    Warm is only what the cold one has read.

    Memory: `peak_mib` is the sum of the peaks of all loading processes, in which pages that forked
    workers share and files that are mapped count in each; `import_mib` is that of imports.
    """
    reader = _reader(job["arm"])
    imported = _status_mib("VmRSS", os.getpid())
    started = time.perf_counter()
    loader = reader.open_loader(_place(job))
    cold = _timed(loader.epoch(0), started, job["seconds"])
    started = time.perf_counter()
    warm = _timed(loader.epoch(1), started, job["seconds"])
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    peak = sum(_status_mib("VmHWM", process) for process in (os.getpid(), *workers))
    return {"cold": cold, "warm": warm, "peak_mib": round(peak), "import_mib": round(imported)}


def stop(job: Job) -> Result:
    """Read half an epoch; write its state to the file `state` and its rows' ids to `ids`."""
    records = Records.load(Path(job["records"]))
    loader = _reader(job["arm"]).open_loader(_place(job))
    half = -(-len(records) // BATCH_ROWS) // 2
    wrong = _compare(islice(loader.epoch(0), half), records, Path(job["ids"]))
    Path(job["state"]).write_bytes(pickle.dumps(loader.state()))
    return {"wrong_rows": wrong}


def restart(job: Job) -> Result:
    """Resume from `state`; return the `seconds` to the first batch."""
    return {"seconds": _resumed(job)[1]}


def resume(job: Job) -> Result:
    """Resume, and read the rest of that epoch, whose rows' ids go to `ids`."""
    batches, seconds = _resumed(job)
    records = Records.load(Path(job["records"]))
    return {"seconds": seconds, "wrong_rows": _compare(batches, records, Path(job["ids"]))}


def special(job: Job) -> Result:
    """Return a measurement that only one reader has: its function `measure`."""
    result: Result = _reader(job["arm"]).measure(_place(job))
    return result


TASKS = {task.__name__: task for task in (write, epochs, stop, restart, resume, special)}


def _reader(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.peers.{name}")


def _place(job: Job) -> Place:
    place = job["place"]
    return Place(place["url"], tuple(place["names"]), Path(place["cache"]), place["workers"])


def _resumed(job: Job) -> tuple[Iterator[Batch], float]:
    """Return the batches after `state`, and the seconds until the first of them was there."""
    reader = _reader(job["arm"])
    state = pickle.loads(Path(job["state"]).read_bytes())
    started = time.perf_counter()
    batches = iter(reader.open_loader(_place(job)).resume(state))
    first = next(batches)
    return chain([first], batches), time.perf_counter() - started


def _timed(batches: Iterator[Batch], started: float, limit: float) -> Result:
    rows, tokens, first = 0, 0, 0.0
    for batch in batches:
        count, length = batch["input_ids"].shape
        rows += count
        tokens += count * length
        first = first or time.perf_counter() - started
        if time.perf_counter() - started > limit:
            break
    seconds = time.perf_counter() - started
    return {"rows": rows, "tokens": tokens, "seconds": seconds, "first_batch_seconds": first}


def _compare(batches: Iterator[Batch], records: Records, ids: Path) -> int:
    """Count rows that differ from those written under their id; save the ids in order, [N, 16]."""
    places = {bytes(key): index for index, key in enumerate(records.sample_ids)}
    wrong, seen = 0, []
    for batch in batches:
        keys = [np.asarray(key, np.uint8).tobytes() for key in batch["sample_ids"]]
        rows = [places[key] for key in keys]
        seen += keys
        matches = [
            np.asarray(batch[name]).reshape(len(rows), -1)
            == getattr(records, name)[rows].reshape(len(rows), -1)
            for name in ("input_ids", "loss_mask", "payload")
        ]
        wrong += len(rows) - int(np.logical_and.reduce([each.all(1) for each in matches]).sum())
    np.save(ids, np.frombuffer(b"".join(seen), np.uint8).reshape(-1, 16))
    return wrong


def _status_mib(field: str, process: int) -> float:
    """Return a field of /proc/<pid>/status in MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{field}:\s*(\d+) kB", text)
    assert found, f"no {field} of process {process}"
    return int(found.group(1)) / 1024


def main(job_file: str) -> None:
    """Do the job and write its result."""
    job = json.loads(Path(job_file).read_text())
    result = TASKS[job["task"]](job)
    Path(job["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
