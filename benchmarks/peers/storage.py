"""Storage of the readers' files: a folder, a real S3 server, and that server far away."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import ROOT
from tests.s3 import BUCKET, S3Server

LATENCY_MS = 20
_PREFIX = "reader"


@dataclass(frozen=True)
class Storage:
    """A place that holds a folder for each reader."""

    name: str
    base: str
    """A folder, or s3://bucket/prefix."""

    files: Path
    """The folder on this machine's disk that holds the bytes."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of a process that reads it."""

    is_far: bool = False
    """Whether it answers LATENCY_MS late."""

    def url(self, reader: str) -> str:
        """Return the folder of a reader."""
        return f"{self.base}/{reader}"


@contextmanager
def serve(work: Path, formats: Path) -> Iterator[list[Storage]]:
    """Serve the folder `formats`, a copy of it on an S3 server, and that server LATENCY_MS away."""
    local = Storage("local", str(formats), formats)
    with S3Server(work / "s3") as server, _delayed(server.ports["s3"]) as port:
        _upload(formats, server)
        base = f"s3://{BUCKET}/{_PREFIX}"
        far = server.env | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        yield [
            local,
            Storage("s3", base, server.directory, server.env),
            Storage(f"s3+{LATENCY_MS}ms", base, server.directory, far, is_far=True),
        ]


def files_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the files at any depth, sorted."""
    return tuple(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()))


def drop_page_cache(folder: Path) -> None:
    """Take the files out of the kernel's page cache.

    For these files it is what /proc/sys/vm/drop_caches does; it needs no root, and leaves the other
    programs of the machine alone.
    """
    for name in files_in(folder):
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _upload(formats: Path, server: S3Server) -> None:
    client = server.client()
    for name in files_in(formats):
        body = (formats / name).read_bytes()
        client.put_object(Bucket=BUCKET, Key=f"{_PREFIX}/{name}", Body=body)


@contextmanager
def _delayed(port: int) -> Iterator[int]:
    """Start a proxy before `port` and yield its port."""
    command = [sys.executable, "-m", "benchmarks.peers.latency", str(port), str(LATENCY_MS)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as proxy:
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        yield int(proxy.stdout.readline())
        proxy.stdin.close()
