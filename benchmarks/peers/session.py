"""Jobs of the readers, each in a fresh process, in the reader's environment."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT
from benchmarks.peers.storage import Storage, drop_page_cache, files_in

OURS = "kdscale_cache"
# The same without entropy coding: larger files, nothing to unpack.
PLAIN = "kdscale_plain"
PEERS = (
    "mosaic",
    "litdata_chunks",
    "datasets_map",
    "datasets_stream",
    "webdataset_tar",
    "distillkit",
)
_JOB_SECONDS = 180
_MORE_RESTARTS = 2


class ReaderFailedError(RuntimeError):
    """A reader's process failed: the end of its output, and more of it."""


@dataclass(frozen=True)
class Session:
    """Jobs on one set of records, in the folder `work`."""

    work: Path
    peers_python: Path
    seconds: float
    """Time limit of an epoch."""

    @property
    def records(self) -> Path:
        """Folder of the records."""
        return self.work / "records"

    @property
    def formats(self) -> Path:
        """Folder of the readers' files, with a folder each."""
        return self.work / "formats"

    def write(self, readers: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Write the readers' files; return versions, the way to resume and bytes of each."""
        found: dict[str, dict[str, Any]] = {}
        for ours in (True, False):
            some = [reader for reader in readers if (reader in (OURS, PLAIN)) == ours]
            found |= self._run(some[0], "write", {}, arms=some, formats=str(self.formats))
        for reader, about in found.items():
            folder = self.formats / reader
            about["bytes"] = sum((folder / name).stat().st_size for name in files_in(folder))
        return found

    def epochs(self, reader: str, storage: Storage, workers: int) -> dict[str, Any]:
        """Run a cold and a warm epoch."""
        return self._run(reader, "epochs", storage.env, place=self._cold(reader, storage, workers))

    def special(self, reader: str, storage: Storage) -> dict[str, Any]:
        """Return the measurement that only this reader has."""
        return self._run(reader, "special", storage.env, place=self._cold(reader, storage, 0))

    def resumed(self, reader: str, storage: Storage, workers: int) -> dict[str, Any]:
        """Run half an epoch in one process and the rest in another, with the local cache kept.

        Returns seconds to the first batch of several such processes; rows lost and
        repeated.
        """
        details = {
            "place": self._cold(reader, storage, workers),
            "state": str(self.work / "state"),
        }
        parts = [self.work / "before.npy", self.work / "after.npy"]
        before, after = (
            self._run(reader, task, storage.env, ids=str(ids), **details)
            for task, ids in zip(("stop", "resume"), parts, strict=True)
        )
        if wrong := before["wrong_rows"] + after["wrong_rows"]:
            raise RuntimeError(f"{reader} gave {wrong} rows that are not the ones written")
        more = [self._run(reader, "restart", storage.env, **details) for _ in range(_MORE_RESTARTS)]
        seen = np.concatenate([np.load(ids) for ids in parts])
        distinct = len(np.unique(seen, axis=0))
        rows = len(np.load(self.records / "sample_ids.npy", mmap_mode="r"))
        return {
            "resume_seconds": [result["seconds"] for result in (after, *more)],
            "rows_lost": rows - distinct,
            "rows_repeated": len(seen) - distinct,
        }

    def _cold(self, reader: str, storage: Storage, workers: int) -> dict[str, Any]:
        """Return a place with an empty local cache, and none of its files in the page cache."""
        cache = self.work / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        is_local = storage.files == self.formats
        drop_page_cache(self.formats / reader if is_local else storage.files)
        names = files_in(self.formats / reader)
        return {"url": storage.url(reader), "names": names, "cache": str(cache), "workers": workers}

    def _run(
        self, reader: str, task: str, env: Mapping[str, str], **details: Any
    ) -> dict[str, Any]:
        result, job = self.work / "result.json", self.work / "job.json"
        result.unlink(missing_ok=True)
        job.write_text(
            json.dumps(
                {
                    "task": task,
                    "arm": reader,
                    "records": str(self.records),
                    "result": str(result),
                    "seconds": self.seconds,
                    **details,
                }
            )
        )
        python = sys.executable if reader in (OURS, PLAIN) else str(self.peers_python)
        try:
            ended = subprocess.run(
                [python, "-m", "benchmarks.peers.measure", str(job)],
                cwd=ROOT,
                env={**os.environ, **env, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
                capture_output=True,
                text=True,
                timeout=_JOB_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ReaderFailedError(
                f"{task} of {reader} had not ended after {_JOB_SECONDS} s"
            ) from error
        if ended.returncode or not result.exists():
            said = ended.stderr.strip()
            raise ReaderFailedError(said[-200:], f"{task} of {reader} failed:\n{said[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found
