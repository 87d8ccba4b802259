"""The program while it runs: its log as it grows, and faults in the middle."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable

from kdscale.run.stop import request_stop
from kdscale.store import Store
from tests.runs import kdscale

PATIENCE_SECONDS = 600


class Watched:
    """`kdscale` with `arguments` in a process, with its log and its workers' pids."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._arguments, self._env = arguments, env
        self._start()

    def _start(self) -> None:
        self._process = kdscale(*self._arguments, env=self._env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Until `ready`; fails where the run ends or takes too long first."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            assert self._process.poll() is None, f"the run ended before {what}:\n{self.log[-4000:]}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.log[-4000:]}"
            time.sleep(0.02)

    def kill_worker(self, rank: int, marker: str) -> None:
        """Kill -9 the process that said `marker` as `rank`, which the log names."""
        pattern = rf"rank {rank} of 2 \(pid (\d+)\): {marker}"
        pid = int(re.findall(pattern, self.log)[-1])
        os.kill(pid, signal.SIGKILL)

    def lose_driver(self) -> None:
        """Kill -9 the driver, and start the same command again."""
        self.end()
        # Its workers end with it: the next driver is not to meet them.
        self._reader.join(timeout=PATIENCE_SECONDS)
        assert not self._reader.is_alive(), "processes of the killed run are left"
        self._start()

    def stop(self, output: Store, stage: str) -> None:
        """Ask the run to stop in this stage, and start the same command again when it has."""
        request_stop(output, seconds=PATIENCE_SECONDS)
        assert self.finish() == 5, self.log[-4000:]
        state = json.loads(output.get("run.json"))["stages"][stage]["state"]
        assert state == "stopped"
        self._start()

    def finish(self) -> int:
        """Wait for its end; return the exit code."""
        code = self._process.wait(timeout=PATIENCE_SECONDS)
        self._reader.join(timeout=10)
        return code

    def end(self) -> None:
        """Kill -9, where it still runs."""
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        return "".join(self.lines)
