"""What a machine with a GPU has to show: values beside those of the CPU, memory and milliseconds.

    make test-gpu
    python benchmarks/gpu_check.py [--quick] [--device cpu]

Values: encoders give the bytes that they give on the CPU, losses and their gradients those of
float32 on the CPU, with and without Triton, draws by Triton have the mean that they should, packed
documents the logits that they have alone, and a training the losses of one on the CPU; each is a
goal. Times: head and loss, encodes, and captures over the bare forward, with the peak of memory,
beside what benchmarks/gpu_model.py says of the same device. Without a GPU the script says what it
skips; --device cpu --quick runs all of it at a small size there, to check the script. At most ten
minutes. The last line is one JSON object, also kept in results/gpu_check.json.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, Quick, Row, goal, log, report
from kdscale.cache.codecs import kernels as encoders
from kdscale.cache.codecs import make_codec, uniforms
from kdscale.config.cache import CodecConfig, SampleCodec, TopkCodec, VaroptCodec
from kdscale.config.teacher import ModelConfig
from kdscale.config.training import OptimiserConfig
from kdscale.distill.targets import CachedTargets
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.losses import divergences, kernels
from kdscale.losses.divergences import Divergence
from kdscale.losses.fused import LossSums, Objective, head_and_loss
from kdscale.models.attention import implementation, set_attention
from kdscale.models.forward import RowTensors, target_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, make_config
from kdscale.models.sequence_check import SequenceSpec, check_sequences
from kdscale.teacher.states import encode_states
from kdscale.train.backends.ddp import DdpBackend
from kdscale.train.throughput import DeviceTimer
from kdscale.types import Head, TeacherLogits

CODECS: dict[str, CodecConfig] = {
    "varopt": VaroptCodec(),
    "topk": TopkCodec(),
    "sample": SampleCodec(),
}
SHAPES = ((4096, 128_256), (2048, 128_256), (896, 151_936))
BESIDE_A_TEACHER: dict[str, tuple[Divergence | None, float | None]] = {
    "forward KL": (None, None),
    "TAID": (None, 0.4),
    "reverse KL": (divergences.reverse_kl_sum, None),
    "Jensen-Shannon": (partial(divergences.jensen_shannon_sum, beta=0.5), None),
    "skewed KL": (partial(divergences.skewed_kl_sum, alpha=0.1), None),
    "skewed reverse KL": (partial(divergences.skewed_reverse_kl_sum, alpha=0.1), None),
    "total variation": (divergences.total_variation_sum, None),
}
ARCHITECTURES = ("llama", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt2")
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
REPEATS = 7

DeviceName = Annotated[str | None, typer.Option("--device", help="cuda or cpu; found by default.")]


def main(quick: Quick = False, device: DeviceName = None) -> None:
    """Check, measure, print and keep."""
    name = device or ("cuda" if torch.cuda.is_available() else "none")
    checks = {"values": values, "losses": losses, "encodes": encodes, "captures": captures}
    if name == "none":
        skipped = ", ".join(checks)
        print(f"skipped: {skipped}. torch {torch.__version__} finds no GPU here: kdscale doctor")
        return
    where = torch.device(name, 0) if name == "cuda" else torch.device(name)
    rows: list[Row] = []
    for part, check in checks.items():
        log(part)
        for row in check(where, quick):
            log(row)
            rows.append(row)
    goals = [goal(row["part"], row["error"], f"<={row['bound']}") for row in rows if "error" in row]
    of = torch.cuda.get_device_name() if name == "cuda" else "CPU"
    report("gpu_check", rows, goals, keep=not quick, device=of)
    missed = [each["name"] for each in goals if not each["value"] <= float(each["goal"][2:])]
    if missed:
        raise SystemExit(f"beyond its bound: {', '.join(missed)}")


# values


def values(device: torch.device, quick: bool) -> list[Row]:
    """Return errors against the CPU, each with its bound."""
    positions, vocab = (128, 1_000) if quick else (1_024, 32_000)
    rows = [
        _encoded(device, name, positions, vocab, triton=triton)
        for name in CODECS
        for triton in _ways(name, device)
    ]
    if encoders.available(device.type):
        rows += [_beside_torch(device, positions, 4 * vocab), _mean_of_draws(device)]
    else:
        log(f"skipped: encoders with Triton, which does not run on this {device.type}")
    for half in (False, True):
        for triton in (False, True) if kernels.available(device.type) else (False,):
            rows.append(_loss_values(device, positions, vocab, half=half, triton=triton))
    if kernels.available(device.type):
        rows += [_beside_teacher(device, name) for name in BESIDE_A_TEACHER]
    else:
        log(f"skipped: losses with Triton, which does not run on this {device.type}")
    rows += [_packed(device, each) for each in ARCHITECTURES]
    return [*rows, _training(device)]


def _ways(codec: str, device: torch.device) -> tuple[bool, ...]:
    """Return whether encoders are tried without Triton, and with it."""
    return (False, True) if codec == "varopt" and encoders.available(device.type) else (False,)


def _encoded(device: torch.device, name: str, positions: int, vocab: int, *, triton: bool) -> Row:
    """Return the share of positions whose bytes differ from the CPU's, in float32."""
    codec = make_codec(CODECS[name], vocab)
    logits = 3 * _randn(positions, vocab)
    noise = uniforms(0, torch.zeros(1, 16, dtype=torch.uint8), positions, codec.streams)[0]
    mine = codec.encode(logits, noise).payload
    with mock.patch.object(encoders, "available", return_value=triton):
        theirs = codec.encode(logits.to(device), noise.to(device)).payload.cpu()
    # A sum of other rounding moves a choice at its edge, seldom.
    differing = (mine != theirs).any(-1).float().mean().item()
    part = f"bytes of {name}{', Triton' if triton else ''}, positions that differ"
    return {"part": part, "error": differing, "bound": 0.01}


def _beside_torch(device: torch.device, positions: int, vocab: int) -> Row:
    """Return the share of ids that differ between Triton and torch, from bfloat16 logits."""
    codec = make_codec(CODECS["varopt"], vocab)
    logits = 3 * _randn(positions, vocab)
    # Of equal logits, which bfloat16 has many of, either may be in the head: none here.
    logits[:, :3] = logits.amax(-1, keepdim=True) + torch.tensor([0.5, 1.0, 1.5])
    logits = logits.to(device, torch.bfloat16)
    noise = uniforms(0, torch.zeros(1, 16, dtype=torch.uint8), positions, codec.streams)[0]
    found = []
    for triton in (False, True):
        with mock.patch.object(encoders, "available", return_value=triton):
            payload = codec.encode(logits, noise.to(device)).payload
        found.append(codec.decode(payload).ids)
    differing = (found[0] != found[1]).float().mean().item()
    part = f"ids of varopt, Triton beside torch, V={vocab:,}"
    return {"part": part, "error": differing, "bound": 0.05}


def _mean_of_draws(device: torch.device) -> Row:
    """Return how far the mean of Triton's targets over a grid of uniforms is from p, at most.

    Each id is hit within one of 64 points of its due, and rounded within one of 8.
    """
    vocab = 1_000
    codec = make_codec(CODECS["varopt"], vocab)
    logits = (3 * _randn(vocab)).to(device)
    first, second = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (8, 64))
    grid = torch.cartesian_prod(first, second).to(device)
    targets = codec.decode(codec.encode(logits.expand(len(grid), -1).contiguous(), grid).payload)
    total = torch.zeros(vocab, dtype=torch.float64, device=device)
    total.index_add_(0, targets.ids.flatten(), targets.probs.flatten().double())
    error = (total / len(grid) - logits.double().softmax(-1)).abs().max().item()
    tau = targets.probs[:, -1].max().item()
    part = "mean of varopt's targets over a grid, Triton"
    return {"part": part, "error": error, "bound": tau / 64 + 1 / (8 * 254) + 1e-6}


def _loss_values(
    device: torch.device, positions: int, vocab: int, *, half: bool, triton: bool
) -> Row:
    """Return the largest relative error of the head's gradients."""
    hidden, weight = _randn(positions, 64), 0.3 * _randn(vocab, 64)
    labels = torch.arange(positions) % vocab
    codec = make_codec(CODECS["varopt"], vocab)
    noise = uniforms(0, torch.zeros(1, 16, dtype=torch.uint8), positions, codec.streams)[0]
    payload = codec.encode(3 * _randn(positions, vocab), noise).payload
    expected = _gradients(hidden, weight, labels, payload, codec)
    given = [each.to(device) for each in (hidden, weight, labels, payload)]
    context = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
    with context, mock.patch.object(kernels, "available", return_value=triton):
        found = _gradients(*given, codec)
    errors = [
        ((a.cpu() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)
    ]
    name = f"gradients of the loss, {'bfloat16' if half else 'float32'}"
    return {
        "part": name + (", Triton" if triton else ""),
        "error": max(errors),
        "bound": 0.02 if half else 1e-3,
    }


def _gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    payload: torch.Tensor,
    codec: Any,
) -> tuple[torch.Tensor, ...]:
    leaves = [each.clone().requires_grad_() for each in (hidden, weight)]
    _loss(leaves[0], leaves[1], labels, payload, codec).objective.backward()
    return tuple(each.grad for each in leaves if each.grad is not None)


def _loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    payload: torch.Tensor,
    codec: Any,
) -> LossSums:
    targets = CachedTargets(codec, payload, torch.zeros((), device=payload.device), 1.0)
    head = Head(weight, None, codec.vocab_size)
    return head_and_loss(hidden, head, labels, targets.at, Objective(0.5))


def _beside_teacher(device: torch.device, name: str) -> Row:
    """Return the relative error of the hidden states' gradient beside an online teacher."""
    positions, vocab = 128, 10_000
    hidden, weight = _randn(positions, 64), 0.3 * _randn(vocab, 64)
    teacher, labels = 2 * _randn(positions, vocab), torch.arange(positions)
    divergence, share = BESIDE_A_TEACHER[name]
    found = []
    for where in (torch.device("cpu"), device):
        leaf = hidden.to(where).requires_grad_()
        logits = teacher.to(where)

        def targets(part: slice, _: Any, logits: torch.Tensor = logits) -> TeacherLogits:
            return TeacherLogits(logits[part], 2.0, lambda _: None, share)

        head, objective = Head(weight.to(where), None, vocab), Objective(0.5, 2.0, divergence)
        half = where.type == "cuda"
        with torch.autocast(where.type, torch.bfloat16) if half else nullcontext():
            head_and_loss(leaf, head, labels.to(where), targets, objective).objective.backward()
        assert leaf.grad is not None
        found.append(leaf.grad.cpu())
    error = ((found[0] - found[1]).norm() / found[0].norm()).item()
    return {"part": f"gradients beside a teacher, {name}, Triton", "error": error, "bound": 0.02}


def _packed(device: torch.device, architecture: str) -> Row:
    """Return 0 where packed documents have the logits that they have alone, 1 where refused."""
    vocab, length = 300, 256
    model = _model(architecture, vocab, length, width=64).to(device, _half(device)).eval()
    set_attention(model, "auto", device, packs=True)
    spec = SequenceSpec(vocab, vocab, length, packs=True, micro_batch_size=2)
    error = 0.0
    try:
        check_sequences(model, partial(target_logits, model, vocab_size=vocab), spec)
    except KdscaleError as refusal:
        log(refusal)
        error = 1.0
    part = f"packed documents of {architecture}, {implementation(model)}"
    return {"part": part, "error": error, "bound": 0}


def _training(device: torch.device) -> Row:
    """Return the relative difference of losses after 20 steps from those on the CPU."""
    found = {each.type: _losses_of_training(each) for each in {torch.device("cpu"), device}}
    mine, theirs = found["cpu"], found[device.type]
    error = max(abs(a - b) / abs(a) for a, b in zip(mine, theirs, strict=True))
    return {"part": "losses of a training of 20 steps", "error": error, "bound": 0.05}


def _losses_of_training(device: torch.device) -> list[float]:
    """Train on packed rows, with the kernel of attention that a run would choose."""
    vocab, length = 300, 128
    made = set_attention(_model("llama", vocab, length, width=64), "auto", device, packs=True)
    model = ModelWithHead(made, vocab)
    backend = DdpBackend(model, OptimiserConfig(learning_rate=1e-3), Rank(0, 1, device))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (8, length), generator=generator).to(device)
    segments = 1 + torch.arange(length, device=device).expand_as(ids) // 50
    rows = RowTensors(ids, segments, torch.ones_like(ids).bool(), ids)

    def loss(wrapped: ModelWithHead) -> torch.Tensor:
        hidden = wrapped.hidden_at(rows)
        return head_and_loss(hidden, wrapped.head, ids.flatten()).objective / ids.numel()

    found = []
    for _ in range(20):
        with backend.micro_batch(last=True):
            value = backend.model(loss)
            backend.backward(value)
        backend.step(1e-3)
        found.append(value.item())
    return found


# times


def losses(device: torch.device, quick: bool) -> list[Row]:
    """Return milliseconds of head and loss, over those of its three products alone."""
    positions = 256 if quick else 16_384
    rows = []
    for width, vocab in ((64, 1_000),) if quick else SHAPES:
        hidden = _randn(positions, width).to(device).requires_grad_()
        weight = (0.02 * _randn(vocab, width)).to(device).requires_grad_()
        labels = torch.arange(positions, device=device) % vocab
        codec = make_codec(CODECS["varopt"], vocab)
        payload = _payload(codec, positions, vocab, device)
        left, right = (each.detach().to(_half(device)) for each in (hidden, weight))
        products = _milliseconds(partial(_products, left, right), device)[0]
        for triton in (False, True) if kernels.available(device.type) else (False,):

            def step(some: Any = (hidden, weight, labels, payload, codec)) -> None:
                with torch.autocast(device.type, torch.bfloat16):
                    _loss(*some).objective.backward()

            with mock.patch.object(kernels, "available", return_value=triton):
                spent, peak = _milliseconds(step, device)
            part = f"loss, ddp, D={width}, V={vocab:,}"
            rows.append(
                {
                    "part": part + (", Triton" if triton else ""),
                    "ms": spent,
                    "over_products": spent / products,
                    "peak_gib": peak,
                    "model_ms": _modelled(part, "ms" if triton else "ms_without_triton"),
                }
            )
    return rows


def _products(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """Multiply as a head's logits and both of its gradients do, in chunks of 2,048 positions."""
    for some in hidden.split(2048):
        logits = some @ weight.T
        logits @ weight
        logits.T @ some


def encodes(device: torch.device, quick: bool) -> list[Row]:
    """Return milliseconds of encoding bfloat16 logits."""
    positions, vocab = (256, 1_000) if quick else (16_384, 128_256)
    rows = []
    logits = torch.randn(positions, vocab, device=device, dtype=_half(device))
    for name, config in CODECS.items():
        codec = make_codec(config, vocab)
        samples = torch.zeros(1, 16, dtype=torch.uint8, device=device)
        noise = uniforms(0, samples, positions, codec.streams)[0]
        part = f"encode, {name}, V={vocab:,}"
        for triton in _ways(name, device):
            with mock.patch.object(encoders, "available", return_value=triton):
                spent, peak = _milliseconds(partial(codec.encode, logits, noise), device)
            figure = "ms" if triton else "ms_without_triton"
            rows.append(
                {
                    "part": part + (", Triton" if triton else ""),
                    "ms": spent,
                    "peak_gib": peak,
                    "model_ms": _modelled(part, figure),
                }
            )
    return rows


def captures(device: torch.device, quick: bool) -> list[Row]:
    """Return milliseconds of a forward of a 1.2 B Llama, and of one whose targets are encoded."""
    vocab, length, sequences = (1_000, 128, 2) if quick else (128_256, 4096, 4)
    width, layers = (64, 2) if quick else (2048, 16)
    with torch.device(device):
        model = _model("llama", vocab, length, width=width, layers=layers)
    model = model.to(device, _half(device)).eval()
    wrapped = ModelWithHead(set_attention(model, "auto", device, packs=True), vocab)
    ids = torch.randint(0, vocab, (sequences, length), device=device)
    rows = RowTensors(ids, torch.ones_like(ids), torch.ones_like(ids).bool(), ids)
    codec = make_codec(CODECS["varopt"], vocab)
    samples = torch.zeros(sequences, 16, dtype=torch.uint8, device=device)
    noise = uniforms(0, samples, length, codec.streams).flatten(0, 1)
    timer = DeviceTimer(device)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return wrapped.states_at(rows)

    def capture() -> None:
        encode_states(codec, wrapped.head, forward(), ids.flatten(), noise, 1.0, timer)

    (bare, _), (whole, peak) = _milliseconds(forward, device), _milliseconds(capture, device)
    part = f"capture of {sequences} x {length}, {implementation(model)}"
    return [{"part": part, "ms": whole, "over_forward": whole / bare, "peak_gib": peak}]


def _milliseconds(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the median time of `work` after one turn to warm up, and its peak memory in GiB."""
    is_gpu = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if is_gpu else lambda: None
    work()
    wait()
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        wait()
        found.append(1e3 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() / 2**30 if is_gpu else 0.0
    return statistics.median(found), peak


def _modelled(part: str, figure: str = "ms") -> float | None:
    """Return what results/gpu_model.json has of a part: of the device that it was made for."""
    path = RESULTS / "gpu_model.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found: float | None = next((row[figure] for row in rows if row["part"] == part), None)
    return found


def _payload(codec: Any, positions: int, vocab: int, device: torch.device) -> torch.Tensor:
    """Return targets of random logits, made of a few positions again and again."""
    few = min(positions, 256)
    noise = uniforms(0, torch.zeros(1, 16, dtype=torch.uint8), few, codec.streams)[0]
    made = codec.encode(3 * _randn(few, vocab), noise).payload
    return made.repeat(-(-positions // few), 1)[:positions].to(device)


def _model(architecture: str, vocab: int, length: int, *, width: int, layers: int = 4) -> Any:
    """Return a model with random weights, whose window, if it has one, is a quarter of a row."""
    options: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(4, width // 64),
        "num_key_value_heads": max(2, width // 256),
    }
    if architecture == "gpt2":
        options = {"n_embd": width, "n_layer": layers, "n_head": 4}
    elif architecture in ("gemma2", "gemma3_text", "qwen3"):
        options["head_dim"] = 64
    if architecture in ("gemma2", "gemma3_text", "mistral"):
        options["sliding_window"] = length // 4
    model = ModelConfig(architecture=architecture, options=options)
    return build_model(make_config(model, vocab, SPECIAL, length), seed=0)


def _half(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


if __name__ == "__main__":
    typer.run(main)
