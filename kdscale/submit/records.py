"""Records of the jobs submitted from this machine, so that later commands know where each went.

One small JSON file a job in the user's folder for the state of programs ($XDG_STATE_HOME, usually
~/.local/state/kdscale/jobs): a run's output may be out of reach from here, and a folder of the
current directory would be missed from any other. Only the newest are kept.
"""

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from uuid import uuid4

from platformdirs import user_state_path

_MOST_RECORDS = 500


@dataclass(frozen=True)
class Place:
    """A back end and what reaches it: `address` for ray, `kube` (a file) for kuberay."""

    backend: str = "ray"
    address: str | None = None
    kube: str | None = None

    @property
    def options(self) -> str:
        """Options of a command that reach it, with a space before each."""
        backend = "" if self.backend == "ray" else f" --backend {self.backend}"
        address = "" if self.address is None else f" --address {self.address}"
        return backend + address + ("" if self.kube is None else f" --kube {self.kube}")


@dataclass(frozen=True)
class Record:
    """A submitted job: where it went, and the output of its run."""

    job: str
    place: Place
    output: str


def records_folder() -> Path:
    """Return the folder of the records; it may not exist."""
    return user_state_path("kdscale", appauthor=False) / "jobs"


def remember(record: Record) -> None:
    """Keep the record. Raises OSError where it cannot be written."""
    folder = records_folder()
    folder.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: another command may read it at any time.
    scratch = folder / f".{uuid4().hex}"
    scratch.write_text(json.dumps(asdict(record)), encoding="utf-8")
    scratch.replace(folder / f"{record.job}.json")
    for old in _newest_first()[_MOST_RECORDS:]:
        old.unlink(missing_ok=True)


def recall(job: str) -> Record | None:
    """Return the record of a job, also of a later attempt (`JOB.2`) of it; None if unknown."""
    for name in (job, re.sub(r"\.\d+$", "", job)):
        if (found := _read(records_folder() / f"{name}.json")) is not None:
            return found
    return None


def recall_run(output: str) -> Record | None:
    """Return the record of the newest job with this output (absolute or a URL), if any."""
    wanted = output.rstrip("/")
    found = filter(None, map(_read, _newest_first()))
    return next((each for each in found if each.output.rstrip("/") == wanted), None)


def similar_job(text: str) -> str | None:
    """Return the recorded job with the most similar id, if one is similar."""
    return next(iter(get_close_matches(text, known_jobs(), 1)), None)


def known_jobs() -> list[str]:
    """Return the ids of the recorded jobs, the newest first."""
    return [path.stem for path in _newest_first()]


def _newest_first() -> list[Path]:
    dated = []
    for path in records_folder().glob("*.json"):
        with suppress(OSError):  # Another command may just have removed it.
            dated.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(dated, reverse=True)]


def _read(path: Path) -> Record | None:
    """Return the record in a file; None where there is none that can be read."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Record(tree["job"], Place(**tree["place"]), tree["output"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
