"""The same records read shuffled, by kdscale and by the loaders that its users would take instead.

    make bench-setup
    python benchmarks/reader.py [--quick] [--megabytes 256] [--repeats 5]

Readers are modules of benchmarks/peers, each in a fresh process; contract.py says what they store
and deliver, measure.py what is measured, storage.py from where. Cold: the local cache is empty, the
files are out of the page cache, and opening is included. Warm: the epoch after it, in the same
process. Readers take turns, so that a machine that slows down slows all of them.

The goals compare medians of tokens/s, each reader with the loader workers that suit it best. The
last line is one JSON object, also kept in results/reader.json. --quick reads 8 MB once with 2
workers, resumes kdscale alone, and keeps nothing.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import PEERS_PYTHON, PeersPython, Quick, log, report, require
from benchmarks.peers.contract import BATCH_ROWS, PAYLOAD_BYTES
from benchmarks.peers.figures import Measured, goals, lines
from benchmarks.peers.session import OURS, PEERS, PLAIN, ReaderFailedError, Session
from benchmarks.peers.storage import Storage, serve
from benchmarks.peers.synthetic import make_records

ROW_LENGTH = 512
QUICK_MEGABYTES = 8
WORKERS = (0, 2)
# Time limit of an epoch, which only the slowest peers need.
EPOCH_SECONDS = 6.0
QUICK_SECONDS = 2.0


def main(
    quick: Quick = False,
    megabytes: Annotated[int, typer.Option(help="Size of the records.")] = 256,
    repeats: Annotated[int, typer.Option(help="Runs of each reader.")] = 5,
    peers_python: PeersPython = PEERS_PYTHON,
) -> None:
    """Write, read, compare, print and keep."""
    python = require(peers_python)
    if quick:
        megabytes, repeats = QUICK_MEGABYTES, 1
    rows = megabytes * 10**6 // row_bytes() // BATCH_ROWS * BATCH_ROWS
    with tempfile.TemporaryDirectory(prefix="kdscale-reader-") as scratch:
        session = Session(Path(scratch), python, QUICK_SECONDS if quick else EPOCH_SECONDS)
        make_records(rows, ROW_LENGTH).save(session.records)
        about = session.write((OURS, PLAIN, *PEERS))
        with serve(session.work, session.formats) as storages:
            measured = measure(session, storages, repeats, quick=quick)
            decode = session.special(OURS, storages[0])
    found = [each.row(rows) for each in measured]
    log("\n".join(lines(found)))
    report(
        "reader",
        found,
        goals(measured, decode),
        keep=not quick,
        versions={name: v for each in about.values() for name, v in each["versions"].items()},
        records={"rows": rows, "tokens": rows * ROW_LENGTH, "bytes": rows * row_bytes()},
        arms={
            name: {"bytes_a_token": each["bytes"] / rows / ROW_LENGTH, "resume": each["resume"]}
            for name, each in about.items()
        },
    )


def row_bytes() -> int:
    """Return the bytes of one record: id, tokens, mask, payload."""
    return 16 + ROW_LENGTH * (4 + 1 + PAYLOAD_BYTES)


def measure(
    session: Session, storages: list[Storage], repeats: int, *, quick: bool
) -> list[Measured]:
    """Measure every reader from every storage, in turns; then the cost of a resume from S3.

    From far away only with workers, which can hide the latency.
    """
    readers = [
        (Measured(reader, storage.name, workers), storage)
        for storage, workers, reader in product(storages, WORKERS, (OURS, PLAIN, *PEERS))
        if (workers or not (quick or storage.is_far)) and not (quick and storage.is_far)
    ]
    for repeat, (measured, storage) in product(range(repeats), readers):
        log(f"{repeat + 1}/{repeats} {storage.name} {measured.reader}, {measured.workers} workers")
        with _counted(measured):
            measured.runs.append(session.epochs(measured.reader, storage, measured.workers))
    for measured, storage in readers:
        is_asked = measured.reader == OURS or not quick
        if storage.name == "s3" and measured.workers and measured.runs and is_asked:
            log(f"resume {measured.reader}")
            with _counted(measured):
                measured.resumed = session.resumed(measured.reader, storage, measured.workers)
    return [measured for measured, _ in readers if measured.runs]


@contextmanager
def _counted(measured: Measured) -> Iterator[None]:
    """Go without a peer's run that ends in an error, as where two workers fetch one shard.

    An error of kdscale is the benchmark's.
    """
    try:
        yield
    except ReaderFailedError as error:
        if measured.reader in (OURS, PLAIN):
            raise
        measured.failures.append(error.args[0])
        log(f"{measured.reader} failed")


if __name__ == "__main__":
    typer.run(main)
