"""`run.json`: a run's name, its versions, and the state and seconds of each stage."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from kdscale.evaluate.results import environment
from kdscale.run.finished_run import RECORD_KEY
from kdscale.run.stop import StoppedError
from kdscale.store import Store


class RunRecord:
    """The record of a run in its store; written at every change, by the driver only."""

    def __init__(
        self,
        store: Store,
        name: str,
        config_fingerprint: str,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the record that is there, if any.

        Args:
            store: The run's output.
            name: The run's name.
            config_fingerprint: Fingerprint of the whole config.
            check: Raises if this driver may not write any more.
        """
        self._store = store
        self._check = check
        self._content: dict[str, Any] = {"stages": {}}
        if store.exists(RECORD_KEY):
            self._content = json.loads(store.get(RECORD_KEY))
        versions, hardware = environment()
        self._content |= {
            "name": name,
            "config_fingerprint": config_fingerprint,
            "versions": versions,
            "driver_hardware": hardware,
        }

    def fingerprint(self, stage: str) -> str | None:
        """Return the fingerprint that the stage was last completed with."""
        entry = self._stages.get(stage, {})
        return entry.get("fingerprint") if entry.get("state") == "complete" else None

    def seconds(self) -> dict[str, float]:
        """Return wall seconds of each stage, over all attempts at its present fingerprint."""
        return {stage: entry["seconds"] for stage, entry in self._stages.items()}

    def pinned(self, name: str, fingerprint: str, value: Any) -> Any:
        """Return the value first pinned as `name` for the fingerprint: this one, if none."""
        pins = self._content.setdefault("pinned", {})
        if pins.get(name, {}).get("fingerprint") != fingerprint:
            pins[name] = {"fingerprint": fingerprint, "value": value}
            self._write()
        return pins[name]["value"]

    @contextmanager
    def running(self, stage: str, fingerprint: str) -> Iterator[None]:
        """Time the block and record how it ends."""
        old = self._stages.get(stage, {})
        same = old.get("fingerprint") == fingerprint
        spent = old.get("seconds", 0.0) if same else 0.0
        entry = {"state": "running", "fingerprint": fingerprint, "seconds": spent}
        entry["attempts"] = (old.get("attempts", 0) if same else 0) + 1
        self._put(stage, entry)
        start = time.perf_counter()
        state = "failed"
        try:
            yield
            state = "complete"
        except StoppedError:
            state = "stopped"
            raise
        finally:
            seconds = round(spent + time.perf_counter() - start, 1)
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            self._put(stage, entry | {"state": state, "seconds": seconds, "finished": finished})

    @property
    def _stages(self) -> dict[str, dict[str, Any]]:
        return self._content["stages"]

    def _put(self, stage: str, entry: dict[str, Any]) -> None:
        self._stages[stage] = entry
        self._write()

    def _write(self) -> None:
        self._check()
        self._store.put(RECORD_KEY, json.dumps(self._content, indent=2).encode())
