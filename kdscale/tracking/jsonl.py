"""Metrics of a stage as JSON lines in the store: the record that the report is made from."""

import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

from kdscale.store import Store


class MetricLines:
    """A file of JSON lines: appended to in a local store, put whole at a flush in others."""

    def __init__(self, store: Store, key: str, start_step: int) -> None:
        self._store = store
        self._key = key
        before = store.get(key).decode(errors="replace") if store.exists(key) else ""
        self._text = "".join(_lines_up_to(before, start_step))
        if self._text != before:
            store.put(key, self._text.encode())
        path = store.local_path(key)
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def append(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """Add one line; in a local store it reaches the operating system at once."""
        record: dict[str, Any] = {"step": step, "tokens": tokens, "time": time.time()}
        for name, value in metrics.items():
            record[name] = float(value) if math.isfinite(value) else None
        line = json.dumps(record) + "\n"
        if self._file is None:
            self._text += line
        else:
            self._file.write(line)
            self._file.flush()

    def flush(self) -> None:
        """Make all lines so far survive this process and this machine."""
        if self._file is None:
            self._store.put(self._key, self._text.encode())
        else:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush for the last time."""
        self.flush()
        if self._file is not None:
            self._file.close()


def _lines_up_to(text: str, step: int) -> Iterator[str]:
    """Yield the lines of steps 1 to `step`, without one torn by a killed writer."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if step > 0 and record["step"] <= step:
            yield line + "\n"
