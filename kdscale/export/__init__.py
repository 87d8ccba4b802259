"""A run's model for others to use: a Hugging Face folder, ONNX, int8, each checked against it."""

from enum import StrEnum


class Format(StrEnum):
    """What a model can be exported as. `--help` shows it: nothing heavy is imported here."""

    HF = "hf"
    ONNX = "onnx"
    INT8 = "onnx-int8"
