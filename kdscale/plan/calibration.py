"""Calibration record: measured rates, kept as JSON beside a run and in the user's cache."""

import os
import re
from pathlib import Path

from pydantic import Field, ValidationError

from kdscale.config.base import Config
from kdscale.config.cache import CodecConfig
from kdscale.store import Store

KEY = "calibration.json"


class Calibration(Config):
    """Rates of one worker while all workers of its group compute."""

    version: int = Field(default=2, ge=2, le=2)
    hardware: str
    """Name of the hardware in the plan's table."""

    device: str
    """Name that the machine gives it."""

    created: str
    """ISO time."""

    workers: int
    forward_flops: float = Field(gt=0)
    """The teacher's forward, FLOPs a second."""

    training_flops: float = Field(gt=0)
    """The student's steps with all that belongs to them, FLOPs a second."""

    teacher_flops: float | None = Field(default=None, gt=0)
    """The steps of a teacher that is trained here, FLOPs a second."""

    encode_tokens: float = Field(gt=0)
    """Positions a second that the codec encodes."""

    put_bytes: float = Field(gt=0)
    """Bytes a second of writing an object of 8 MiB to the output."""

    get_bytes: float = Field(gt=0)
    """The same of reading it."""

    latency_seconds: float = Field(ge=0)
    """Seconds of a write of one byte."""

    start_up_seconds: float = Field(ge=0)
    """From the call to the first line of a worker, and from its last line to the return."""

    base_bytes: int = Field(ge=0)
    """Memory of a worker before it has a model."""

    codec: CodecConfig | None = None
    """Codec of `stored_payload`."""

    stored_payload: float | None = Field(default=None, gt=0)
    """Stored bytes of a position's payload, of the run's teacher and text, where both existed."""


def user_file(hardware: str) -> Path:
    """Return the path of a user's last calibration of some hardware."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", hardware)
    return Path(root) / "kdscale" / f"calibration-{name}.json"


def keep(found: Calibration, output: Store) -> None:
    """Write the calibration beside the run's output, and to the user's cache for other runs.

    The latter is without the payload, which depends on teacher and text.
    """
    output.put(KEY, found.model_dump_json(indent=1).encode())
    path = user_file(found.hardware)
    path.parent.mkdir(parents=True, exist_ok=True)
    general = found.model_copy(update={"codec": None, "stored_payload": None})
    path.write_text(general.model_dump_json(indent=1))


def find(output: Store | None, hardware: str) -> Calibration | None:
    """Return the calibration of `output`, else the user's last one; None of other hardware."""
    path = user_file(hardware)
    texts = [output.get(KEY)] if output is not None and output.exists(KEY) else []
    texts += [path.read_bytes()] if path.is_file() else []
    for text in texts:
        try:
            found = Calibration.model_validate_json(text)
        except ValidationError:  # of another version: it is measured again, not repaired
            continue
        if found.hardware == hardware:
            return found
    return None
