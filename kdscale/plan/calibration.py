"""What was measured on the machines at hand, kept as JSON beside a run or in the user's cache."""

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

    version: int = Field(default=1, ge=1, le=1)
    hardware: str
    """Name of the hardware in the plan's table."""

    device: str
    """What the machine calls it."""

    created: str
    """ISO time."""

    workers: int
    forward_flops: float = Field(gt=0)
    """The teacher's forward, FLOPs a second."""

    training_flops: float = Field(gt=0)
    """The student's steps with all that belongs to them, FLOPs a second."""

    teacher_flops: float | None = Field(default=None, gt=0)
    """Those of a teacher that is trained here."""

    encode_tokens: float = Field(gt=0)
    """Positions a second that the codec encodes."""

    put_bytes: float = Field(gt=0)
    """Bytes a second of writing an object of 8 MiB to the output."""

    get_bytes: float = Field(gt=0)
    """The same of reading it."""

    latency_seconds: float = Field(ge=0)
    """Of a write of one byte."""

    start_up_seconds: float = Field(ge=0)
    """From the call to the first line of a worker, and from its last line to the return."""

    base_bytes: int = Field(ge=0)
    """Memory of a worker before it has a model."""

    codec: CodecConfig | None = None
    """What `payload_at_rest` is of."""

    payload_at_rest: float | None = Field(default=None, gt=0)
    """Bytes of a position's payload in the store, of the run's own teacher and text, where both
    were there."""


def user_file(hardware: str) -> Path:
    """Where a user's last calibration of some hardware is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", hardware)
    return Path(root) / "kdscale" / f"calibration-{name}.json"


def keep(found: Calibration, output: Store) -> None:
    """Beside the run's output, and in the user's cache for other runs, whose teacher and text are
    others."""
    output.put(KEY, found.model_dump_json(indent=1).encode())
    path = user_file(found.hardware)
    path.parent.mkdir(parents=True, exist_ok=True)
    general = found.model_copy(update={"codec": None, "payload_at_rest": None})
    path.write_text(general.model_dump_json(indent=1))


def find(output: Store | None, hardware: str) -> Calibration | None:
    """That of `output`, if one is given, else the user's last one; None of other hardware."""
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
