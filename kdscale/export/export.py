"""An export: a folder laid out as the hub's are, whole and checked, or no folder at all.

    config.json, tokenizer files, README.md    whatever the formats
    model.safetensors, generation_config.json  hf
    onnx/model.onnx                            onnx
    onnx/model_int8.onnx                       onnx-int8
    export.json                                what was checked, and what each format costs

It is written beside its place and renamed when all of it has passed.
"""

import json
import math
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.export import Format
from kdscale.export.compare import Comparison, Forward, compare, forward_of
from kdscale.export.hugging_face import load_again, save_model
from kdscale.export.processor import processor
from kdscale.export.samples import shorter, validation_batches
from kdscale.export.source import Source
from kdscale.export.to_onnx import (
    INPUTS,
    PACKAGES,
    check_packages,
    load_onnx,
    quantise,
    write_onnx,
)
from kdscale.models.chunked_classifier import row_multiple
from kdscale.models.forward import RowTensors
from kdscale.models.load import count_parameters, load_config_of, load_model

INDEX = "export.json"
HF_TOLERANCE = 1e-5
"""Of float32 logits; in other dtypes they have to be the same bits."""
ONNX_TOLERANCE = 1e-4
"""Of float32 logits, as a share of the largest one (of 1 where that is smaller)."""

INT8_TOLERANCE = 0.01
"""KL from the run's own model, nats a label: that much loss is 1 % of perplexity. A file whose
products saturate is further off (docs/export.md)."""


def check_target(folder: Path) -> None:
    """Refuse a place that is taken, or that is no local folder."""
    if ":/" in str(folder):
        raise KdscaleError(
            f"{str(folder)!r} is no local folder.", "Export to a folder here, then copy it."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KdscaleError(
            f"{folder} exists and is not an empty folder.",
            "Export to another place, or delete what is there.",
        )


def check_formats(formats: Sequence[Format]) -> None:
    """KdscaleError where one of them needs a package that is missing."""
    if set(formats) - {Format.HF}:
        check_packages()


def export(
    source: Source, folder: Path, formats: Sequence[Format], *, rows: int = 64
) -> dict[str, Any]:
    """Write `source` in `formats` to `folder`, checked on `rows` of the validation set; what
    `export.json` says.

    KdscaleError, with nothing left behind, where the folder is taken, a package is missing, the
    rows have no label, or a format is not the run's own model within its tolerance.
    """
    check_target(folder)
    check_formats(formats)
    with _staged(folder) as staging:
        facts = _write(source, staging, formats, rows)
        (staging / INDEX).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def file_sizes(folder: Path, pattern: str = "**/*") -> dict[str, int]:
    """Bytes of the files of `folder` that match, by their names there, sorted."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


@dataclass(frozen=True)
class _Check:
    """Compares what was exported with the run's own model."""

    own: PreTrainedModel
    batches: list[RowTensors]
    outputs: int

    def __call__(self, exported: Forward) -> Comparison:
        return compare(self.own, exported, self.batches, self.outputs)


def _write(source: Source, folder: Path, formats: Sequence[Format], rows: int) -> dict[str, Any]:
    """All files but the index, which is returned."""
    own, dtype = _load(source)
    check = _Check(own, _batches(source, own, rows), source.prepared.outputs)
    own.config.save_pretrained(folder)
    for file in source.prepared.tokenizer_folder().iterdir():
        shutil.copy(file, folder)
    (folder / "README.md").write_text(source.card, encoding="utf-8")
    found: dict[str, Any] = {}
    if Format.HF in formats:
        found[Format.HF] = _hugging_face(source, folder, check, dtype)
    if set(formats) - {Format.HF}:
        found |= _onnx(folder, check, formats)
    return {
        "run": source.run.results["run"],
        "model": source.name,
        "task": source.run.results["task"],
        "parameters": count_parameters(own),
        "dtype": str(dtype).removeprefix("torch."),
        "fingerprint": source.reference.fingerprint,
        "formats": found,
        "checked_on": processor(),
        "versions": {name: metadata.version(name) for name in _packages(formats)},
    }


def _load(source: Source) -> tuple[PreTrainedModel, torch.dtype]:
    """The run's own model, in the dtype that it is stored in."""
    weights, revision = source.weights, source.reference.revision
    dtype = load_config_of(weights, revision).dtype or torch.float32
    own = load_model(weights, dtype, revision).eval()
    # Code that a config names is never run here, so an export does not hand it on either.
    vars(own.config).pop("auto_map", None)
    return own, dtype


def _batches(source: Source, own: PreTrainedModel, rows: int) -> list[RowTensors]:
    """Rows to compare on, and a shape that no other batch has."""
    packed = source.run.results["task"] == "causal-lm"
    batches = validation_batches(source.prepared, rows, packed=packed)
    return [*batches, *(shorter(batch, row_multiple(own.config)) for batch in batches[:1])]


def _hugging_face(
    source: Source, folder: Path, check: _Check, dtype: torch.dtype
) -> dict[str, Any]:
    auto_class = source.words.auto_class
    save_model(check.own, folder, auto_class)
    found = check(forward_of(load_again(folder, auto_class, dtype)))
    tolerance = HF_TOLERANCE if dtype == torch.float32 else 0.0
    found.check_difference(tolerance, "the Hugging Face folder")
    return _entry(folder, "*.safetensors", found) | {"tolerance": tolerance, "loads": auto_class}


def _onnx(folder: Path, check: _Check, formats: Sequence[Format]) -> dict[str, Any]:
    """The ONNX formats among `formats`. The run's own model is float32 from here on."""
    check.own.float()
    plain, int8 = folder / "onnx" / "model.onnx", folder / "onnx" / "model_int8.onnx"
    plain.parent.mkdir()
    graph = {"opset": write_onnx(check.own, plain), "inputs": list(INPUTS)}
    entries: dict[str, Any] = {}
    found = check(load_onnx(plain))
    tolerance = ONNX_TOLERANCE * max(1.0, found.largest)
    found.check_difference(tolerance, "the ONNX file")
    entries[Format.ONNX] = (
        _entry(folder, "onnx/model.onnx*", found) | graph | {"tolerance": tolerance}
    )
    if Format.INT8 in formats:
        quantise(plain, int8)
        found = check(load_onnx(int8))
        found.check_difference(math.inf, "the int8 file")  # NaN, where there is no label
        found.check_kl(INT8_TOLERANCE, "the int8 file")
        entries[Format.INT8] = (
            _entry(folder, "onnx/model_int8.onnx*", found)
            | graph
            | {"tolerance_kl": INT8_TOLERANCE}
        )
    if Format.ONNX not in formats:
        del entries[Format.ONNX]
        for file in plain.parent.glob(f"{plain.name}*"):
            file.unlink()
    return entries


def _entry(folder: Path, pattern: str, found: Comparison) -> dict[str, Any]:
    files = file_sizes(folder, pattern)
    return {"files": files, "bytes": sum(files.values()), **found.as_dict()}


def _packages(formats: Sequence[Format]) -> tuple[str, ...]:
    """Those that decided what the files are."""
    return ("kdscale", "torch", "transformers", *(PACKAGES if set(formats) - {Format.HF} else ()))


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place if the block ends well, and is gone if not."""
    folder = folder.absolute()
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
