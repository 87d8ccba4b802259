"""Folders for this machine's copies of remote objects, shared by a user's workers."""

import os
import tempfile
from pathlib import Path


def local_cache_dir(kind: str) -> Path:
    """Return a folder for fetched copies of a `kind`, which users of one machine do not share."""
    root = Path(tempfile.gettempdir()) / f"kdscale-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    folder = root / kind
    folder.mkdir(exist_ok=True)
    return folder
