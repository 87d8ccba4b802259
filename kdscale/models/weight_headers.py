"""Headers of a model's *.safetensors: names, types and shapes of its tensors without the weights.

A header stands at a file's start: its length in 8 bytes, then JSON with the type, the shape and the
place of each tensor. So the tensors of a model that fills a disk are known after a few kilobytes,
and so is whether its files are whole.
"""

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)

from kdscale.errors import KdscaleError
from kdscale.models.adapter_folder import WEIGHTS as ADAPTERS
from kdscale.models.hf_folder import check_is_name, is_folder
from kdscale.store import Store, open_store

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LENGTH = 8  # bytes that say how long the header is
_LONGEST = 100_000_000  # bytes of a header; safetensors reads no longer one
_FILES_AT_ONCE = 16
_LFS = b"version https://git-lfs"
_SAVE = "Save the model once with transformers' save_pretrained, then use that folder."
_COPY_AGAIN = "Copy the file again from where it is whole, or save the model once more."
_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class TensorHeader:
    """Header of a stored tensor: `dtype` by safetensors' name, such as "BF16", and its file."""

    dtype: str
    shape: tuple[int, ...]
    file: str


def weight_headers(source: str, revision: str | None = None) -> dict[str, TensorHeader]:
    """Return the headers of the model at `source` by the tensors' names in its files.

    `source` is a folder, a store's URL or a hub name, of which `revision` is taken. The names may
    differ from those of the model's class. Raises KdscaleError with the file that is missing,
    empty, cut off, a git-lfs pointer or no safetensors file at all.
    """
    if is_folder(source):
        return _stored_headers(open_store(source))
    check_is_name(source)
    return _hub_headers(source, revision)


def _stored_headers(store: Store) -> dict[str, TensorHeader]:
    files = _weight_files(store)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        found = list(pool.map(lambda name: _file_headers(store, name), files))
    return {name: header for headers in found for name, header in headers.items()}


def _weight_files(store: Store) -> list[str]:
    """Return the names that transformers loads: of the single file, else of those in the index."""
    if store.exists(SINGLE):
        return [SINGLE]
    try:
        index = store.get(INDEX)
    except FileNotFoundError:
        others = [key for key in store.list() if key.endswith((".bin", ".pt", ".safetensors"))]
        if ADAPTERS in others:
            raise KdscaleError(
                f"{store} holds adapters (LoRA) for another model, and a whole model is needed.",
                "Merge them into it first: kdscale export RUN --to FOLDER.",
            ) from None
        raise KdscaleError(
            f"{store} holds neither {SINGLE} nor {INDEX}, but {', '.join(others[:3]) or 'nothing'} "
            "as weights.",
            f"Give a folder with config.json and {SINGLE}. {_SAVE}",
        ) from None
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        _refuse_bytes(store, INDEX, index, len(index), "it is no index of weights")
    missing = [name for name in names if not store.exists(name)]
    if missing:
        raise KdscaleError(
            f"{store}/{missing[0]} does not exist, one of {len(missing)} files of {len(names)} "
            f"that {INDEX} names and the folder lacks.",
            "Copy all files of the model, or save it once more.",
        )
    return names


def _file_headers(store: Store, name: str) -> dict[str, TensorHeader]:
    """Return the headers of one file, which is whole. Raises KdscaleError if it is not."""
    size = store.size(name)
    if size < _LENGTH:
        _refuse_bytes(store, name, store.get(name), size, "it is too short for a header")
    first = store.get_range(name, 0, _LENGTH)
    length = int.from_bytes(first, "little")
    if length > _LONGEST or first == _LFS[:_LENGTH]:
        start = store.get_range(name, 0, min(size, 200))
        _refuse_bytes(store, name, start, size, "it is no safetensors file")
    if _LENGTH + length > size:
        raise _cut(store, name, size, f"its header alone has {_LENGTH + length:,}")
    try:
        header = json.loads(store.get_range(name, _LENGTH, length))
        header.pop("__metadata__", None)
        tensors = {key: _tensor(value, name) for key, value in header.items()}
        last = max((int(value["data_offsets"][1]) for value in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        start = store.get_range(name, 0, min(size, 200))
        _refuse_bytes(store, name, start, size, "its header cannot be read")
    if _LENGTH + length + last != size:
        raise _cut(store, name, size, f"its header describes {_LENGTH + length + last:,}")
    return tensors


def _tensor(found: Mapping[str, Any], file: str) -> TensorHeader:
    """Return a header. Raises ValueError where the bytes are not those of its type and shape."""
    start, end = found["data_offsets"]
    dtype, shape = str(found["dtype"]), tuple(map(int, found["shape"]))
    if dtype in _BITS and -(-math.prod(shape) * _BITS[dtype] // 8) != end - start:
        raise ValueError(f"{end - start} bytes for {dtype} {shape}")
    return TensorHeader(dtype, shape, file)


def _refuse_bytes(store: Store, name: str, start: bytes, size: int, what: str) -> NoReturn:
    """Raise KdscaleError for a file of the wrong kind, by its first bytes."""
    if start.startswith(_LFS):
        raise KdscaleError(
            f"{store}/{name} is a git-lfs pointer of {size} bytes, not the file that it stands "
            "for.",
            "Fetch the files themselves: `git lfs pull` in the clone, or `hf download`.",
        )
    if not start:
        raise KdscaleError(f"{store}/{name} is empty.", _COPY_AGAIN)
    raise KdscaleError(
        f"{store}/{name} of {size:,} bytes cannot be used: {what}. It begins with {start[:24]!r}.",
        _COPY_AGAIN,
    )


def _cut(store: Store, name: str, size: int, what: str) -> KdscaleError:
    return KdscaleError(
        f"{store}/{name} is damaged: it has {size:,} bytes, and {what}.", _COPY_AGAIN
    )


def _hub_headers(name: str, revision: str | None) -> dict[str, TensorHeader]:
    what = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        found = HfApi().get_safetensors_metadata(name, revision=revision)
    except SafetensorsParsingError as error:
        raise KdscaleError(f"The weights of {what} cannot be used: {error}", _COPY_AGAIN) from error
    except (NotASafetensorsRepoError, HFValidationError) as error:
        # For the hub's client a missing model and one without such files look alike.
        raise KdscaleError(
            f"{name!r} is no folder here, and the hub has no model {what} with *.safetensors "
            "that you may read.",
            "Correct the name or the path; a private or gated model needs HF_TOKEN, one in another "
            "format has to be saved once with transformers' save_pretrained.",
        ) from error
    except Exception as error:  # httpx's, the hub's and plain ones
        cached = _cached_folder(name, revision)
        if cached is not None:
            return _stored_headers(open_store(str(cached)))
        raise KdscaleError(
            f"The model {what} is neither in the hub's cache on this machine nor to be had from "
            f"the hub: {type(error).__name__}: {error}",
            "Check the network, HF_ENDPOINT and HF_TOKEN, or give a folder.",
        ) from error
    return {
        tensor: TensorHeader(info.dtype, tuple(info.shape), file)
        for file, metadata in found.files_metadata.items()
        for tensor, info in metadata.tensors.items()
    }


def _cached_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of the hub's client with all of the model's weights, if it has them."""
    for file in (SINGLE, INDEX):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            folder = Path(found).parent
            index = {} if file == SINGLE else json.loads(Path(found).read_text())["weight_map"]
            return folder if all((folder / each).exists() for each in index.values()) else None
    return None
