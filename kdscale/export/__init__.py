"""Export of a run's model as Hugging Face folder, ONNX or int8, each checked against it."""

from enum import StrEnum


class Format(StrEnum):
    """Format of an export. `--help` shows it, so nothing heavy is imported here."""

    HF = "hf"
    ONNX = "onnx"
    INT8 = "onnx-int8"
