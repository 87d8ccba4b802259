"""Least time of the loss and of encoding on a GPU, from the kernels that they launch: a model.

    python benchmarks/gpu_model.py [--quick] [--device H100] [--before FILE] [--show PART]

Nothing here runs on a GPU. Each part runs on fake CUDA tensors (tests/gpu/fake_cuda.py), which have
shapes, strides and dtypes, but no values, and every operator that would run is counted: kernels,
bytes of the device's memory (a softmax reads a row three times, a broadcast dimension counts once),
FLOPs of matrix products. A kernel takes the larger of its bytes and its FLOPs at the rates of
kdscale/plan/roofline.py, and no less than its launch; their sum is the time. Left out are caches,
overlap of launches with kernels, and the autograd backward of divergences that torch's operators
compute. `over ideal` is the time over that of the three bfloat16 products of the head alone.

Parts are at 16,384 positions: the head and the loss with their gradients, weights in float32 under
autocast (DDP) or in bfloat16 (ZeRO), and encodes of bfloat16 logits, over the forward of a teacher
with 8 B parameters. Figures are those with Triton's kernels; `without_triton` are those of torch's
operators alone. --before shows the figures of an earlier results/gpu_model.json
beside. --show lists what takes longest in a part. The last line is one JSON object, also kept in
results/gpu_model.json; --quick has 2,048 positions and keeps nothing.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Quick, Row, goal, log, report
from benchmarks.gpu_cost import cost_of, costs_by_place
from kdscale.cache.codecs import kernels as encoders
from kdscale.cache.codecs import make_codec, uniforms
from kdscale.config.cache import CodecConfig, SampleCodec, TopkCodec, VaroptCodec
from kdscale.distill.taid import InterpolatedTargets
from kdscale.distill.targets import BatchTargets, CachedTargets, OnlineTargets
from kdscale.losses import divergences, kernels
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.plan.hardware import find_hardware
from kdscale.plan.roofline import Rates
from kdscale.types import Head
from tests.gpu.fake_cuda import CUDA, Record, fake_cuda, why_not

POSITIONS, QUICK_POSITIONS = 16_384, 2048
LLAMA, QWEN = 128_256, 151_936  # outputs of Llama 3's head, and of Qwen 3's
QWEN_IDS = 151_669  # of its tokenizer, which are no multiple of 8
ENCODED = (LLAMA, QWEN_IDS)
TEACHER_WIDTH, TEACHER_PARAMETERS = 4096, 8.03e9
CODECS: dict[str, CodecConfig] = {
    "varopt": VaroptCodec(),
    "topk": TopkCodec(),
    "sample": SampleCodec(),
}

Device = Annotated[str, typer.Option(help="GPU of the built-in table, or a hardware file.")]
Before = Annotated[Path | None, typer.Option(help="Results of an earlier run.")]
Show = Annotated[str | None, typer.Option(help="Part whose operators are listed.")]


def main(
    quick: Quick = False, device: Device = "H100", before: Before = None, show: Show = None
) -> None:
    """Model all parts, print and keep."""
    if reason := why_not():
        raise SystemExit(reason)
    rates = Rates.of(find_hardware(device))
    earlier = {} if before is None else {each["part"]: each for each in _rows(before)}
    positions = QUICK_POSITIONS if quick else POSITIONS
    rows = []
    for name, (run, ideal) in parts(positions).items():
        without, record = _run(run, with_triton=False), _run(run, with_triton=True)
        if name == show:
            for (operator, place), cost in costs_by_place(record, rates).items():
                log(f"{cost.seconds * 1e3:9.2f} ms {cost.kernels:6} x {operator:24} {place}")
        row = _row(name, record, rates, ideal(rates))
        row |= _named(_row(name, without, rates, ideal(rates)), "without_triton")
        rows.append(row | _named(earlier.get(name), "before"))
        log(rows[-1])
    report("gpu_model", rows, goals(rows), keep=not quick, device=device, positions=positions)


def _run(run: Callable[[Record], None], *, with_triton: bool) -> Record:
    """Return the record of a part; fake tensors need no Triton to know what it would launch."""
    with (
        mock.patch.object(kernels, "available", return_value=with_triton),
        mock.patch.object(encoders, "available", return_value=with_triton),
        fake_cuda() as record,
    ):
        run(record)
    return record


Part = tuple[Callable[[Record], None], Callable[[Rates], float]]
"""What runs on fake tensors, and the ideal seconds to compare with."""


def parts(positions: int) -> dict[str, Part]:
    """Return all parts by name."""
    found: dict[str, Part] = {}
    for width, outputs in ((4096, LLAMA), (2048, LLAMA), (896, QWEN), (896, QWEN_IDS)):
        for back_end in ("ddp", "zero"):
            found[f"loss, {back_end}, D={width}, V={outputs:,}"] = (
                partial(_loss, positions, width, outputs, back_end, _cached),
                partial(_products, positions, width, outputs),
            )
    kinds: dict[str, tuple[Callable[[int, int], BatchTargets], Objective]] = {
        "top-k": (partial(_cached, codec="topk"), Objective(0.5)),
        "online": (_online, Objective(0.5)),
        "online, T=2": (partial(_online, temperature=2.0), Objective(0.5, 2.0)),
        "TAID": (_taid, Objective(0.5)),
        "Jensen-Shannon": (_online, Objective(0.5, 1.0, _JENSEN_SHANNON)),
    }
    for kind, (make, objective) in kinds.items():
        found[f"loss, ddp, D=2048, V={LLAMA:,}, {kind}"] = (
            partial(_loss, positions, 2048, LLAMA, "ddp", make, objective=objective),
            partial(_products, positions, 2048, LLAMA),
        )
    for outputs in ENCODED:
        for codec in CODECS:
            found[f"encode, {codec}, V={outputs:,}"] = (
                partial(_encode, positions, outputs, codec),
                partial(_forward, positions),
            )
    return found


_JENSEN_SHANNON = partial(divergences.jensen_shannon_sum, beta=0.5)


def _products(positions: int, width: int, outputs: int, rates: Rates) -> float:
    """Return the seconds of the three products of a head: logits, and gradients of both factors."""
    return 3 * 2 * positions * width * outputs / rates.products


def _forward(positions: int, rates: Rates) -> float:
    """Return the seconds of the teacher's forward."""
    return 2 * positions * TEACHER_PARAMETERS / rates.products


def _loss(
    positions: int,
    width: int,
    outputs: int,
    back_end: str,
    make: Callable[[int, int], BatchTargets],
    record: Record,
    *,
    objective: Objective | None = None,
) -> None:
    """Run head and loss, and the backward that scales their gradients."""
    dtype = torch.float32 if back_end == "ddp" else torch.bfloat16
    hidden = torch.empty(positions, width, dtype=dtype, device=CUDA, requires_grad=True)
    weight = torch.empty(outputs, width, dtype=dtype, device=CUDA, requires_grad=True)
    labels = torch.empty(positions, dtype=torch.int64, device=CUDA)
    targets = make(positions, outputs)
    scale = torch.empty((), device=CUDA)
    record.clear()
    context = torch.autocast("cuda", torch.bfloat16) if back_end == "ddp" else nullcontext()
    with context:
        head = Head(weight, None, outputs)
        found = head_and_loss(hidden, head, labels, targets.at, objective or Objective(0.5))
        targets.kl(found.distillation)
    # The engine itself cannot run here; this is what it would call.
    node: Any = found.objective.grad_fn
    type(node)._forward_cls.backward(node, scale, None, None)


def _cached(positions: int, outputs: int, codec: str = "varopt") -> CachedTargets:
    made = make_codec(CODECS[codec], outputs)
    shape = (positions, made.bytes_per_position)
    payload = torch.empty(shape, dtype=torch.uint8, device=CUDA)
    return CachedTargets(made, payload, torch.empty((), device=CUDA), 1.0)


def _online(positions: int, outputs: int, temperature: float = 1.0) -> OnlineTargets:
    weight = torch.empty(outputs, TEACHER_WIDTH, dtype=torch.bfloat16, device=CUDA)
    hidden = torch.empty(positions, TEACHER_WIDTH, dtype=torch.bfloat16, device=CUDA)
    return OnlineTargets(Head(weight, None, outputs), hidden, temperature, {})


def _taid(positions: int, outputs: int) -> InterpolatedTargets:
    return InterpolatedTargets(_online(positions, outputs), 0.5)


def _encode(positions: int, outputs: int, codec: str, record: Record) -> None:
    made = make_codec(CODECS[codec], outputs)
    ids = torch.empty(4, 16, dtype=torch.uint8, device=CUDA)
    # Rows of memory as long as the model's head is wide.
    logits = torch.empty(positions, outputs + -outputs % 256, dtype=torch.bfloat16, device=CUDA)
    record.clear()
    noise = uniforms(0, ids, positions // 4, made.streams).flatten(0, 1)
    made.encode(logits[:, :outputs], noise)


def _row(name: str, record: Record, rates: Rates, ideal: float) -> Row:
    cost = cost_of(record, rates)
    return {
        "part": name,
        "ms": round(cost.seconds * 1e3, 1),
        "ideal_ms": round(ideal * 1e3, 1),
        "over_ideal": round(cost.seconds / ideal, 3),
        "products_ms": round(cost.products * 1e3, 1),
        "kernels": cost.kernels,
        "gigabytes": round(cost.nbytes / 1e9, 1),
        "teraflops": round(cost.flops / 1e12, 1),
        "syncs": record.syncs.total(),
    }


def _named(row: Row | None, what: str) -> Row:
    """Return the main figures of another run, under names of their own."""
    names = ("ms", "over_ideal", "kernels", "syncs")
    return {} if row is None else {f"{name}_{what}": row[name] for name in names}


def _rows(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def goals(rows: list[Row]) -> list[Row]:
    """Return the goals with their values."""
    by_part = {row["part"]: row for row in rows}
    losses = [row for row in rows if row["part"].startswith("loss")]
    encodes = [row for row in rows if row["part"].startswith("encode")]
    ddp, online = (
        f"loss, ddp, D=4096, V={LLAMA:,}",
        f"loss, ddp, D=2048, V={LLAMA:,}, online",
    )
    small = f"loss, ddp, D=896, V={QWEN:,}"
    bounds = (
        *((ddp, "over_ideal_without_triton", "<= 1.45"), (ddp, "over_ideal", "<= 1.1")),
        *((small, "over_ideal_without_triton", "<= 2.0"), (small, "over_ideal", "<= 1.3")),
        (online, "over_ideal", "<= 3"),
        *((f"encode, varopt, V={outputs:,}", "over_ideal", "<= 0.01") for outputs in ENCODED),
    )
    return [
        *(goal(f"{part}, {name}", by_part[part][name], bound) for part, name, bound in bounds),
        goal("host syncs of a loss", max(row["syncs"] for row in losses), "0"),
        goal("encode over an 8 B forward", max(row["over_ideal"] for row in encodes), "<= 0.05"),
        goal("kernels of an encode", max(row["kernels"] for row in encodes), "< 1000"),
    ]


if __name__ == "__main__":
    typer.run(main)
