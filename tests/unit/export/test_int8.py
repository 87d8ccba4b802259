"""Int8 exports compute the same on every processor, and one that is too far off is refused.

AVX2 without VNNI multiplies an unsigned byte by a signed one and adds two such products in 16 bits,
saturating (VPMADDUBSW).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from kdscale.errors import KdscaleError
from kdscale.export import Format, export, to_onnx
from kdscale.export.compare import validation_batches
from kdscale.export.export import INT8_TOLERANCE, processor, render
from kdscale.export.source import find_source
from kdscale.export.to_onnx import check_weights, integer_weights
from kdscale.store import Store
from tests.unit.export.planted import plant_run

ALIKE = 1e-3  # of logits of the order of 10: float32 sums in another order
EMULATOR = "qemu-x86_64"
FORWARD = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 3, 1
for path in sys.argv[2:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    np.save(path + ".npy", session.run(["logits"], dict(np.load(sys.argv[1])))[0])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("run")
    return plant_run(str(folder / "output"), folder)


@pytest.fixture(scope="module")
def exported(run: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Export in both formats; return the folder onnx/ and the content of export.json."""
    folder = tmp_path_factory.mktemp("exports") / "out"
    formats = [Format.ONNX, Format.INT8]
    return folder / "onnx", export.export(find_source(run.url, "student"), folder, formats)


@pytest.fixture(scope="module")
def eight_bits(exported: tuple[Path, dict[str, Any]], tmp_path_factory: Any) -> Path:
    """Write the same graph with weights of eight bits, as it must not be exported."""
    path: Path = tmp_path_factory.mktemp("eight") / "model.onnx"
    quantize_dynamic(
        exported[0] / "model.onnx", path, per_channel=True, weight_type=QuantType.QInt8
    )
    return path


def saturating(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R, K] uint8 times [K, N] int8 as VPMADDUBSW and VPMADDWD make it: [R, N] int32."""
    products = activations.astype(np.int32)[:, :, None] * weights.astype(np.int32)[None]
    pairs = products.reshape(len(activations), -1, 2, weights.shape[1]).sum(axis=2)
    return np.clip(pairs, -(1 << 15), (1 << 15) - 1).sum(axis=1)


def worst(weights: np.ndarray) -> np.ndarray:
    """Activations [2 N, K] of 0 and 255 with the largest and least sums that each column allows."""
    return np.concatenate([255 * (weights.T > 0), 255 * (weights.T < 0)]).astype(np.uint8)


def test_written_weights_saturate_no_pair_of_products(
    exported: tuple[Path, dict[str, Any]], eight_bits: Path
) -> None:
    found = integer_weights(exported[0] / "model_int8.onnx")
    assert len(found) == 15  # seven products in each of two layers, and the head
    random = np.random.default_rng(0)
    for weights in found.values():
        assert weights is not None
        assert weights.dtype == np.int8
        assert 32 < np.abs(weights.astype(int)).max() <= 64
        activations = worst(weights)
        activations = np.concatenate([activations, random.integers(0, 256, (8, len(weights)))])
        exact = activations.astype(np.int64) @ weights.astype(np.int64)
        assert (saturating(activations, weights) == exact).all()
    # The emulation does saturate where it should.
    for weights in integer_weights(eight_bits).values():
        assert weights is not None
        exact = worst(weights).astype(np.int64) @ weights.astype(np.int64)
        assert (saturating(worst(weights), weights) != exact).any()


@pytest.mark.parametrize(
    ("limit", "held"), [(127, "reach 127; int8 within 64"), (None, "are uint8"), ("x", "computed")]
)
def test_weights_that_some_processors_multiply_otherwise_are_refused(
    exported: tuple[Path, dict[str, Any]], eight_bits: Path, tmp_path: Path, limit: Any, held: str
) -> None:
    path = eight_bits
    if limit is None:
        path = tmp_path / "unsigned.onnx"
        quantize_dynamic(exported[0] / "model.onnx", path, weight_type=QuantType.QUInt8)
    if limit == "x":
        path = tmp_path / "computed.onnx"
        options = {"MatMulConstBOnly": False}
        quantize_dynamic(exported[0] / "model.onnx", path, reduce_range=True, extra_options=options)
    check_weights(exported[0] / "model_int8.onnx")
    with pytest.raises(KdscaleError, match=held):
        check_weights(path)


@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason="no qemu-user")
@pytest.mark.skipif(processor()["architecture"] != "x86_64", reason="not an x86 to begin with")
def test_a_processor_without_vnni_gives_the_same_logits(
    run: Store, exported: tuple[Path, dict[str, Any]], eight_bits: Path, tmp_path: Path
) -> None:
    batches = validation_batches(find_source(run.url, "student").prepared, 24, packed=True)
    ids, mask = batches[0].ids.numpy(), batches[0].segments.numpy()
    np.savez(tmp_path / "inputs.npz", input_ids=ids, attention_mask=mask)
    files = [exported[0] / "model_int8.onnx", eight_bits]
    code = [os.path.realpath(sys.executable), "-c", FORWARD, str(tmp_path / "inputs.npz")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}

    def logits(*before: str) -> list[np.ndarray]:
        command = [*before, *code, *map(str, files)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return [np.load(f"{file}.npy")[mask.astype(bool)] for file in files]

    without = logits(EMULATOR, "-cpu", "Haswell")
    here = logits()
    assert np.abs(here[0] - without[0]).max() < ALIKE
    assert np.abs(here[0]).max() > 1
    if "vnni" in processor()["instructions"]:  # so that the emulation shows what it is to show
        assert np.abs(here[1] - without[1]).max() > 1
    own, saturated = (torch.tensor(each).log_softmax(dim=-1) for each in (here[0], without[1]))
    assert (own.exp() * (own - saturated)).sum(dim=-1).mean() > 5 * INT8_TOLERANCE


def test_a_file_that_is_too_far_off_is_refused_and_nothing_is_left(
    run: Store,
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = export.load_onnx

    def write_again(model: Any, path: Path) -> int:
        shutil.copy(exported[0] / "model.onnx", path)
        return 18

    def load_spoiled(path: Path) -> Any:
        forward = load(path)
        return (lambda ids, mask: forward(ids, mask) / 2) if "int8" in path.name else forward

    monkeypatch.setattr(export, "write_onnx", write_again)
    monkeypatch.setattr(export, "load_onnx", load_spoiled)
    with pytest.raises(KdscaleError, match=r"int8 file are [\d.]+ nats a label .* 0.01 nats are"):
        export.export(find_source(run.url, "student"), tmp_path / "out", [Format.INT8])
    assert list(tmp_path.iterdir()) == []


def test_what_it_was_checked_on_is_told(exported: tuple[Path, dict[str, Any]]) -> None:
    facts = exported[1]
    assert facts["checked_on"] == processor()
    assert facts["formats"]["onnx-int8"]["kl"] <= INT8_TOLERANCE
    assert facts["formats"]["onnx-int8"]["tolerance_kl"] == INT8_TOLERANCE
    told = f"Checked on {processor()['architecture']} with {processor()['instructions']}."
    assert told in render(facts)
    hf_alone = {**facts, "formats": {"hf": facts["formats"]["onnx"]}}
    assert "Checked on" not in render(hf_alone)


def test_instructions_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": False}, raising=False
    )
    assert processor()["instructions"] == "avx2"
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_vnni": True}, raising=False
    )
    assert processor()["instructions"] == "avx512_vnni"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert processor()["instructions"] == torch.backends.cpu.get_cpu_capability().lower()
    assert to_onnx.WEIGHT_LIMIT * 255 * 2 < 1 << 15
