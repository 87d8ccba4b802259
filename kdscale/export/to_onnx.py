"""A model as ONNX, for sequences of any number and length, and its dynamic int8 quantisation.

The graph takes input_ids and attention_mask, [batch, sequence] int64, and gives logits. Positions
follow from the mask, so that padding on either side leaves a sequence's logits as they are. There
is no cache of keys and values: a graph of this kind scores text, it does not generate it quickly.

It is written by torch.onnx.export and not by optimum-onnx, whose latest release (0.1.0) requires
transformers < 4.58, where kdscale requires 5.23.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.export import Dim
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.export.compare import Forward
from kdscale.models.chunked_classifier import row_multiple
from kdscale.models.tasks import task_of

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"
_ONE_FILE = 1 << 31  # bytes that a message of protobuf may have
WEIGHT_LIMIT = 64
"""Largest absolute int8 weight. AVX2 adds two products of an unsigned and a signed byte in 16 bits
and cuts off what is too large: 2 * 255 * 64 is not."""
_INTEGER_PRODUCTS = ("MatMulInteger", "ConvInteger")


def check_packages() -> None:
    """Refuse to run where a package of the extra `export` is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise KdscaleError(
            f"ONNX needs {', '.join(missing)}, which this environment lacks.",
            "pip install 'kdscale[export]'",
        )


def write_onnx(model: PreTrainedModel, path: Path) -> int:
    """Write `model` (float32, in evaluation mode) to `path`, and return the opset.

    Weights of more than 2 GB go to a file beside it. Raises KdscaleError where torch cannot express
    the architecture.
    """
    multiple = row_multiple(model.config)
    # Two of everything at least: torch.export takes a size of one for a constant.
    shape = (2, max(16, 2 * multiple))
    # A tensor each: one object given twice would be traced as one input.
    examples = {name: torch.ones(shape, dtype=torch.int64) for name in INPUTS}
    sequence = multiple * Dim("chunks") if multiple > 1 else Dim("sequence")
    axes = {0: Dim("batch"), 1: sequence}
    try:
        with _quiet():
            program = torch.onnx.export(
                _Graph(model),
                kwargs=examples,
                input_names=INPUTS,
                output_names=[OUTPUT],
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise KdscaleError(
            f"torch cannot write a {model.config.model_type!r} as ONNX: {_first_line(error)}",
            "Export it with --format hf.",
        ) from error
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of this machine
    program.save(path)
    return int(program.model.opset_imports[""])


def quantise(source: Path, target: Path) -> None:
    """Write the ONNX file `source` to `target` with int8 weights, a scale for each channel.

    Weights lie within WEIGHT_LIMIT (7 bits), so that sums of products are the same on every
    processor. Activations are quantised dynamically, those of each product by itself. Raises
    KdscaleError where a product would have other weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    size = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*"))
    with _quiet():
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            use_external_data_format=size >= _ONE_FILE,
        )
    check_weights(target)


def integer_weights(path: Path) -> dict[str, np.ndarray | None]:
    """Return the weights of the integer products of the ONNX file at `path`.

    By the product's output; None where they are no constant of the file.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {each.name: each for each in graph.initializer}
    found: dict[str, np.ndarray | None] = {}
    for node in graph.node:
        if node.op_type in _INTEGER_PRODUCTS:
            weights = constants.get(node.input[1])
            found[node.output[0]] = None if weights is None else onnx.numpy_helper.to_array(weights)
    return found


def check_weights(path: Path) -> None:
    """Refuse an int8 file whose products saturate on some processors."""
    for product, weights in integer_weights(path).items():
        if weights is None:
            held = "are computed as it runs"
        elif weights.dtype != np.int8:
            held = f"are {weights.dtype}"
        elif (largest := int(np.abs(weights.astype(np.int16)).max(initial=0))) > WEIGHT_LIMIT:
            held = f"reach {largest}"
        else:
            continue
        raise KdscaleError(
            f"The weights of {product} in {path.name} {held}; int8 within {WEIGHT_LIMIT} is what "
            "every processor multiplies alike.",
            "Leave this format out (--format onnx holds float32), and report it with the versions "
            "of onnx and onnxruntime.",
        )


def load_onnx(path: Path) -> Forward:
    """Return the forward of the ONNX file at `path`, run by onnxruntime on the CPU."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3  # errors
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        (logits,) = session.run(
            [OUTPUT], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        )
        return torch.from_numpy(logits)

    return forward


class _Graph(torch.nn.Module):
    """Computation of the ONNX file."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        causal = task_of(model.config) == "causal-lm"
        self._flags = {"use_cache": False} if causal else {}
        self._has_positions = (
            causal and "position_ids" in inspect.signature(model.forward).parameters
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **self._flags}
        if self._has_positions:
            inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        logits: torch.Tensor = self.model(**inputs).logits
        return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on packages and passes that do not matter here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    """Return the cause of an error; the rest is a report for torch's own developers."""
    cause = error.__cause__ or error
    return next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
