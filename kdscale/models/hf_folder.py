"""Hugging Face folders in a store: where they are, when they are complete, how they get there."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from kdscale.errors import KdscaleError
from kdscale.models.load import build_model, count_parameters, load_config_of
from kdscale.store import Store, download_folder, open_store, upload_folder
from kdscale.utils.local_cache_dir import local_cache_dir

MARKER = "kdscale.json"

# Files of config and tokenizer end so; an index of weights does too, and is small.
_SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".merges")
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class ModelReference:
    """A complete model, and where its weights are.

    `source` is a local folder, a store's URL or a hub name; `digest` names the weights' bytes (of a
    hub model: its revision).
    """

    fingerprint: str
    source: str
    revision: str | None
    digest: str
    parameters: int

    @property
    def is_hub_name(self) -> bool:
        """True if transformers is to fetch it from a hub."""
        return not is_folder(self.source)

    def local(self, *, weights: bool = True) -> str:
        """Return what `from_pretrained` takes on this machine: a local folder, or a hub name.

        A remote folder is fetched. Without `weights` only config and tokenizer can be loaded from
        it.
        """
        return loadable(self.source, weights=weights)


def loadable(source: str, *, weights: bool = True) -> str:
    """Return what `from_pretrained` takes on this machine for the model at `source`.

    That is a folder, a store's URL or a hub name. See `local_folder`. Raises KdscaleError where it
    looks like a path and is no folder.
    """
    if is_folder(source):
        return str(local_folder(source, weights=weights))
    check_is_name(source)
    return source


def local_folder(url: str, *, weights: bool = True) -> Path:
    """Return a local folder with the files at `url`; remote ones are fetched once a machine.

    Without `weights` only config and tokenizer are: kilobytes of a model that may fill a disk.
    Raises KdscaleError where a remote place holds no files.
    """
    store = open_store(url)
    here = store.local_path()
    if here is not None:
        return here
    # The marker's bytes: another model at the same place gets another folder.
    marker = store.get(MARKER) if store.exists(MARKER) else b""
    state, names = marker, None
    if not weights:
        entries = [entry for entry in store.entries() if _is_small(entry.key)]
        names = [entry.key for entry in entries]
        # Of a model without a marker, which may be replaced: what is listed, not its bytes.
        state += repr([(e.key, e.size, e.modified) for e in entries]).encode()
    name = hashlib.sha256(url.encode() + state).hexdigest()[:16]
    parent, _, last = url.rstrip("/").rpartition("/")
    try:
        return download_folder(open_store(parent), last, local_cache_dir("models") / name, names)
    except FileNotFoundError as error:
        raise KdscaleError(
            f"There is no model at {store}: {error}.",
            "Give a folder with config.json and *.safetensors, or a hub name.",
        ) from error


def _is_small(key: str) -> bool:
    """Return whether a file of a model is of its config or tokenizer, by its name."""
    folder, _, name = key.rpartition("/")
    return folder in ("", _TEMPLATES) and name.endswith(_SMALL)


def read_marker(store: Store) -> ModelReference | None:
    """Return the model that is complete in `store`, None where there is none."""
    if not store.exists(MARKER):
        return None
    return ModelReference(**json.loads(store.get(MARKER))["model"])


def publish(
    output: Store,
    name: str,
    *,
    export: Callable[[Path], None],
    tokenizer: Path,
    fingerprint: str,
    parameters: int,
) -> None:
    """Put the Hugging Face folder that `export` writes, with the tokenizer, to `name` in `output`.

    What was there before is taken away, and the marker `kdscale.json` comes last. Only one rank
    calls.
    """
    with tempfile.TemporaryDirectory(prefix="kdscale-model-") as scratch:
        folder = Path(scratch)
        export(folder)
        for file in tokenizer.iterdir():
            shutil.copy(file, folder / file.name)
        url, digest = output.child(name).url, weights_digest(folder)
        reference = ModelReference(fingerprint, url, None, digest, parameters)
        (folder / MARKER).write_text(_marker(reference))
        _clear(output.child(name))
        upload_folder(folder, output, name, last=MARKER)


def write_reference(store: Store, source: str, revision: str | None, fingerprint: str) -> None:
    """Mark `store` complete by pointing to a model elsewhere: existing weights are not copied."""
    store.put(MARKER, _marker(reference_to(source, revision, fingerprint)).encode())


def _clear(store: Store) -> None:
    """Delete the model in `store`, its marker first: of another kind, it would be half there."""
    for key in [MARKER, *store.list()]:
        store.delete(key)


def reference_to(source: str, revision: str | None, fingerprint: str) -> ModelReference:
    """Return the existing model at `source`: a folder, a store's URL or a hub name.

    Raises KdscaleError where its weights are damaged, or not those of its config.
    """
    from kdscale.models.stored_tensors import check_weights  # which stands on this module

    stored, where = is_folder(source), source
    if stored:
        source = open_store(source).url
        where = str(local_folder(source))
    check_weights(where, revision, load_config_of(where, revision))
    digest = weights_digest(Path(where)) if stored else f"{source}@{revision or 'main'}"
    return ModelReference(fingerprint, source, revision, digest, _count(where, revision))


def source_identity(
    source: str, revision: str | None, *, ignored: Collection[str] = ()
) -> dict[str, Any]:
    """Return what tells one state of an existing model from another, without reading its weights.

    The `ignored` files of a folder do not count. Raises KdscaleError where `source` looks like a
    path and is no folder, or holds no model.
    """
    if not is_folder(source):
        check_is_name(source)
        return {"name": source, "revision": revision}
    store = open_store(source)
    keys = [key for key in store.list() if "/" not in key and key not in ignored]
    files = {key: store.size(key) for key in keys}
    if "config.json" not in files:
        raise KdscaleError(
            f"There is no model at {store}: it has no config.json among its {len(files)} files.",
            "Give a folder with config.json and *.safetensors, or a hub name.",
        )
    here = store.local_path()
    times = {} if here is None else {key: (here / key).stat().st_mtime_ns for key in files}
    return {"url": store.url, "files": files, "modified": times}


def weights_digest(folder: Path) -> str:
    """Return the xxh3_128 (hex) over names and bytes of the folder's *.safetensors."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise KdscaleError(
            f"The folder {str(folder)!r} holds no *.safetensors.",
            "Save the model once with transformers' save_pretrained, then use that folder.",
        )
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _marker(reference: ModelReference) -> str:
    return json.dumps({"model": asdict(reference)}, indent=2)


def _count(source: str, revision: str | None) -> int:
    """Return the parameters of a model that is not loaded: built without memory from its config."""
    shape = load_config_of(source, revision)
    with torch.device("meta"):
        return count_parameters(build_model(shape, seed=0))


def check_is_name(source: str) -> None:
    """Raise KdscaleError where `source`, which is no folder, cannot be a hub name either."""
    open_store(source)  # refuses what is nearly a URL
    if Path(source).expanduser().is_file():
        raise KdscaleError(
            f"The model {source!r} is a file, where a folder is needed.",
            "Give the folder that holds it, with config.json and *.safetensors, or a hub name.",
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/"):
        raise KdscaleError(
            f"The model's folder {source!r} does not exist.",
            "Give a folder with config.json and *.safetensors, or a hub name.",
        )


def is_folder(source: str) -> bool:
    """Return whether a model is in a folder or a store, and not a hub's."""
    return "://" in source or Path(source).expanduser().is_dir()
