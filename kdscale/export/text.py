"""An export as a person reads it in a terminal."""

from collections.abc import Mapping
from typing import Any

from kdscale.export import Format
from kdscale.export.to_onnx import WEIGHT_LIMIT
from kdscale.report import formatting as units
from kdscale.report.markdown import table
from kdscale.report.tables import Table


def render(facts: Mapping[str, Any]) -> str:
    """A table of the formats, and what its figures mean, as Markdown."""
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
    """The files of a folder, and their sizes."""
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
