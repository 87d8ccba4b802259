"""The same records read shuffled, by kdscale and by the loaders that its users would take instead.

    make bench-setup
    python benchmarks/reader.py [--quick] [--megabytes 256] [--repeats 5] [--work FOLDER]

Arms are modules of benchmarks/peers, each in a process of its own; contract.py says what they store
and deliver, measure.py what is measured, storage.py from where. Cold: the local cache is empty, the
files are out of the page cache, and opening is included. Warm: the epoch after it, in the same
process. Arms take turns, so that a machine that slows down slows all of them.

The goals compare medians of tokens/s, each arm with the loader workers that suit it best. The last
line is one JSON object, also kept in results/reader.json. --quick reads 8 MB once with 2 workers,
resumes kdscale alone, and keeps nothing.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.peers.contract import BATCH_ROWS, PAYLOAD_BYTES  # noqa: E402  after the path is set
from benchmarks.peers.figures import Measured, goals, lines  # noqa: E402
from benchmarks.peers.session import CAUSAL_LM, OURS, PEERS, ArmFailedError, Session  # noqa: E402
from benchmarks.peers.storage import Storage, serve  # noqa: E402
from benchmarks.peers.synthetic import make_records  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "reader.json"
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
ROW_LENGTH = 512
QUICK_MEGABYTES = 8
WORKERS = (0, 2)
# An epoch is left after so many seconds, which only the slowest peers need.
EPOCH_SECONDS = 6.0
QUICK_SECONDS = 2.0


def main(
    quick: bool = typer.Option(False, help="A small set once, to see that it works."),
    megabytes: int = typer.Option(256, help="Size of the records."),
    repeats: int = typer.Option(5, help="Runs of each arm."),
    peers_python: Path = typer.Option(PEERS_PYTHON, help="The peers' Python."),
    work: Path | None = typer.Option(
        None, help="Folder for data, kept; by default a temporary one."
    ),
) -> None:
    """Write, read, compare, print and keep."""
    if not peers_python.exists():
        raise SystemExit(f"{peers_python} does not exist: run `make bench-setup`.")
    if quick:
        megabytes, repeats = QUICK_MEGABYTES, 1
    rows = megabytes * 10**6 // row_bytes() // BATCH_ROWS * BATCH_ROWS
    with _folder(work) as folder:
        session = Session(
            folder, peers_python.absolute(), QUICK_SECONDS if quick else EPOCH_SECONDS
        )
        make_records(rows, ROW_LENGTH).save(session.records)
        about = session.write((OURS, CAUSAL_LM, *PEERS))
        with serve(folder, session.formats) as storages:
            measured = measure(session, storages, repeats, quick=quick)
            decode = session.special(OURS, storages[0])
    found = {
        "benchmark": "reader",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version()}
        | {name: v for each in about.values() for name, v in each["versions"].items()},
        "records": {"rows": rows, "tokens": rows * ROW_LENGTH, "bytes": rows * row_bytes()},
        "arms": {
            arm: {"bytes_a_token": each["bytes"] / rows / ROW_LENGTH, "resume": each["resume"]}
            for arm, each in about.items()
        },
        "rows": [each.row(rows) for each in measured],
        "goals": goals(measured, decode),
    }
    print(*lines(found["rows"]), sep="\n")
    if not quick:
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def row_bytes() -> int:
    """Bytes of one record: id, tokens, mask, payload."""
    return 16 + ROW_LENGTH * (4 + 1 + PAYLOAD_BYTES)


def measure(
    session: Session, storages: list[Storage], repeats: int, *, quick: bool
) -> list[Measured]:
    """Every arm from every storage, in turns; then what a resume from S3 costs.

    From far away only with workers, which can hide the latency.
    """
    arms = [
        (Measured(arm, storage.name, workers), storage)
        for storage, workers, arm in product(storages, WORKERS, (OURS, CAUSAL_LM, *PEERS))
        if (workers or not (quick or storage.is_far)) and not (quick and storage.is_far)
    ]
    for repeat, (measured, storage) in product(range(repeats), arms):
        _tell(f"{repeat + 1}/{repeats} {storage.name} {measured.arm}, {measured.workers} workers")
        with _counted(measured):
            measured.runs.append(session.epochs(measured.arm, storage, measured.workers))
    for measured, storage in arms:
        is_asked = measured.arm == OURS or not quick
        if storage.name == "s3" and measured.workers and measured.runs and is_asked:
            _tell(f"resume {measured.arm}")
            with _counted(measured):
                measured.resumed = session.resumed(measured.arm, storage, measured.workers)
    return [measured for measured, _ in arms if measured.runs]


@contextmanager
def _counted(measured: Measured) -> Iterator[None]:
    """Go without a peer's run that ends in an error, as where two workers fetch one shard.

    An error of kdscale is the benchmark's.
    """
    try:
        yield
    except ArmFailedError as error:
        if measured.arm in (OURS, CAUSAL_LM):
            raise
        measured.failures.append(error.args[0])
        _tell(f"{measured.arm} failed")


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    """Yield the folder for all data."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise SystemExit(f"{work} is not empty: give a new folder.")
        yield work.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="kdscale-reader-") as name:
        yield Path(name)


def _tell(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
