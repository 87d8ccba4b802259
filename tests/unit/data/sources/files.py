"""Files of a source, written by their names."""

from pathlib import Path


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write `files` into `folder`, which is returned."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
