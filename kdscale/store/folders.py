"""Whole folders to and from a store: models, tokenizers, checkpoints."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdscale.store.store import Store

_FILES_AT_ONCE = 8


def upload_folder(folder: Path, store: Store, prefix: str, last: str | None = None) -> None:
    """Write every file of `folder`, at any depth, under `prefix`.

    `last` names the file that says the rest is complete: it is taken away first and written after
    all others, so that it never marks a mixture. FileNotFoundError where `folder` lacks it.
    """
    target = store.child(prefix)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    if last is not None:
        if last not in names:
            raise FileNotFoundError(f"{folder / last} does not exist")
        names.remove(last)
        target.delete(last)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for _ in pool.map(lambda name: target.put_file(name, folder / name), names):
            pass
    if last is not None:
        target.put_file(last, folder / last)


def download_folder(
    store: Store, prefix: str, folder: Path, names: list[str] | None = None
) -> Path:
    """Fetch into `folder` what is under `prefix`, or only `names` of it, and return `folder`.

    A file that is there with the right size is kept as it is, so a folder belongs to one version of
    one prefix. FileNotFoundError where nothing is under `prefix`. A local store needs no
    download: `store.local_path(prefix)` is the folder.
    """
    source = store.child(prefix)
    names = source.list() if names is None else names
    if not names:
        raise FileNotFoundError(f"{source} holds no files")

    def fetch(name: str) -> None:
        path, size = folder / name, source.size(name)
        if path.is_file() and path.stat().st_size == size:
            return
        source.get_file(name, path)
        if path.stat().st_size != size:
            raise OSError(
                f"{source}/{name} has {size} bytes, of which {path.stat().st_size} arrived"
            )

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for _ in pool.map(fetch, names):
            pass
    return folder
