"""An export: a folder laid out as the hub's are, whole and checked, or no folder at all.

    config.json, tokenizer files, README.md    whatever the formats
    model.safetensors, generation_config.json  hf
    onnx/model.onnx                            onnx
    onnx/model_int8.onnx                       onnx-int8
    export.json                                results of the checks, of each format

It is written to a folder beside its target, which is renamed when all checks have passed.
"""

import json
import math
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.export import Format
from kdscale.export.compare import (
    Comparison,
    Forward,
    compare,
    forward_of,
    shorter,
    validation_batches,
)
from kdscale.export.hugging_face import load_again, save_model
from kdscale.export.source import Source
from kdscale.export.to_onnx import (
    INPUTS,
    PACKAGES,
    WEIGHT_LIMIT,
    check_packages,
    load_onnx,
    quantise,
    write_onnx,
)
from kdscale.models.chunked_classifier import row_multiple
from kdscale.models.forward import RowTensors
from kdscale.models.load import count_parameters, load_config_of, load_model
from kdscale.report import formatting as units
from kdscale.report.markdown import table
from kdscale.report.tables import Table

INDEX = "export.json"
HF_TOLERANCE = 1e-5
"""Tolerance of float32 logits; in other dtypes they have to be the same bits."""
ONNX_TOLERANCE = 1e-4
"""Tolerance of float32 logits, as a share of the largest one (of 1 where that is smaller)."""

INT8_TOLERANCE = 0.01
"""KL from the run's own model, nats a label: that much loss is 1 % of perplexity. A file whose
products saturate is further off (docs/export.md)."""

# Instructions that 8-bit products run on, by torch's names, fastest first.
_FOR_INT8 = (
    *("amx_int8", "avx512_vnni", "avx_vnni", "avx512_bw", "avx2", "sse4_1"),
    *("neon_i8mm", "neon_dot", "i8mm", "asimddp", "neon"),
)


def check_target(folder: Path) -> None:
    """Refuse a target that exists, or that is no local folder."""
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
    """Refuse formats that need a package that is missing."""
    if set(formats) - {Format.HF}:
        check_packages()


def export(
    source: Source, folder: Path, formats: Sequence[Format], *, rows: int = 64
) -> dict[str, Any]:
    """Write `source` in `formats` to `folder`; return the content of `export.json`.

    Checked on `rows` sequences of the validation set. Raises KdscaleError, with nothing left
    behind, where the folder exists, a package is missing, the sequences have no label, or a format
    is not the run's own model within its tolerance.
    """
    check_target(folder)
    check_formats(formats)
    with _staged(folder) as staging:
        facts = _write(source, staging, formats, rows)
        (staging / INDEX).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def file_sizes(folder: Path, pattern: str = "**/*") -> dict[str, int]:
    """Return bytes of the files of `folder` that match, by their names there, sorted."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


@dataclass(frozen=True)
class _Check:
    """Comparison of exported models with the run's own."""

    own: PreTrainedModel
    batches: list[RowTensors]
    outputs: int

    def __call__(self, exported: Forward) -> Comparison:
        return compare(self.own, exported, self.batches, self.outputs)


def _write(source: Source, folder: Path, formats: Sequence[Format], rows: int) -> dict[str, Any]:
    """Write all files but the index, which is returned."""
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
    """Load the run's own model, in the dtype that it is stored in."""
    weights, revision = source.weights, source.reference.revision
    dtype = load_config_of(weights, revision).dtype or torch.float32
    own = load_model(weights, dtype, revision).eval()
    # Code that a config names is never run here, so an export does not hand it on either.
    vars(own.config).pop("auto_map", None)
    return own, dtype


def _batches(source: Source, own: PreTrainedModel, rows: int) -> list[RowTensors]:
    """Return sequences to compare on, and a shape that no other batch has."""
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
    """Write the ONNX formats among `formats`; the run's own model is float32 from here on."""
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
    """Return the packages that decided the files."""
    return ("kdscale", "torch", "transformers", *(PACKAGES if set(formats) - {Format.HF} else ()))


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that takes its place if the block succeeds, else vanishes."""
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


def processor() -> dict[str, str]:
    """Return the architecture and the instructions that 8-bit products run on.

    The processor itself is asked, so that an emulated one counts as what it emulates.
    """
    return {"architecture": platform.machine(), "instructions": _instructions()}


def _instructions() -> str:
    # Older releases of torch only tell which of their own kernels they chose.
    ask = getattr(torch.cpu, "get_capabilities", None)
    has = ask() if ask is not None else {}
    chosen = torch.backends.cpu.get_cpu_capability().lower()
    return next((name for name in _FOR_INT8 if has.get(name)), chosen)


def render(facts: Mapping[str, Any]) -> str:
    """Return a table of the formats and an explanation of its figures, as Markdown."""
    formats = facts["formats"]
    first = next(iter(formats.values()))
    content = Table(
        caption="",
        header=["Format", "Size", "Largest difference", "Loss", "Agreement", "KL"],
        rows=[_row(name, entry) for name, entry in formats.items()],
    )
    shapes = ", ".join(f"{b}x{length}" for b, length in first["shapes"])
    lines = [
        table(content),
        f"Beside the run's own {facts['model']}, over {first['labels']:,} labels of the validation "
        f"set. Sequences and tokens of the batches: {shapes}.",
    ]
    opsets = {entry["opset"] for entry in formats.values() if "opset" in entry}
    lines += [f"ONNX opset {opset}; batch and sequence of any size." for opset in opsets]
    if Format.INT8 in formats:
        lines.append(_int8_text(facts["checked_on"]))
    return "\n\n".join(lines)


def _int8_text(processor: Mapping[str, str]) -> str:
    return (
        f"Checked on {processor['architecture']} with {processor['instructions']}. Int8 weights "
        f"are within {WEIGHT_LIMIT}, so that no instructions that sum their products in 16 bits "
        "cut a sum off: other processors compute the same."
    )


def render_files(files: Mapping[str, int]) -> str:
    """Return a table of the files of a folder and their sizes."""
    rows = [[name, units.size(size)] for name, size in files.items()]
    rows.append(["in all", units.size(sum(files.values()))])
    return table(Table(caption="", header=["File", "Size"], rows=rows))


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    return [
        name,
        units.size(entry["bytes"]),
        f"{entry['max_difference']:.2g}",
        f"{entry['loss']:.4f}",
        f"{entry['agreement_top1']:.2%}",
        f"{max(0.0, entry['kl']):.2e}",  # rounding may leave less than nothing
    ]
