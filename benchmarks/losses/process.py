"""Processes that the losses live in."""

import json
import subprocess
from typing import Any

from benchmarks.common import ROOT


class Process:
    """Process of one loss. After a failure, whose reason is in `failure`, it is left out."""

    def __init__(self, name: str, module: str, python: str) -> None:
        self.name = name
        self.failure: str | None = None
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.losses.worker", module, name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._about: dict[str, Any] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """First line, with `gradient_error` and `versions`; empty where the process has failed.

        All processes are started before the first of them is waited for.
        """
        if self._about is None:
            self._about = self._read() or {}
        return self._about

    def measure(self, positions: int, vocab_size: int) -> dict[str, Any] | None:
        """Measure once; None where the process has failed."""
        if not self.about or self.failure is not None:
            return None
        assert self._process.stdin
        job = {"positions": positions, "vocab_size": vocab_size}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """Close the input and wait for the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout
        # Libraries print, too.
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                self.failure = found.get("failure")
                return None if self.failure else found
        self.failure = f"ended with {self._process.wait()}"
        return None
