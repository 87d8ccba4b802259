"""Codecs side by side: their figures beside float64 sums over whole distributions, and threads."""

import math

import numpy as np
import pytest
import torch

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.fidelity.audit import find_teacher
from kdscale.cache.fidelity.compare_codecs import Audited, Bench
from kdscale.cache.read.reader import CacheReader
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.models.forward import compute_logits, row_tensors
from kdscale.models.load import load_model
from tests.unit.cache.fidelity.conftest import SEED, TEMPERATURE, AuditedRun
from tests.unit.cache.fidelity.naive import dense_target
from tests.unit.cache.planted import ROW_LENGTH, VOCAB

ROWS, DRAWS = 5, 3
CONFIGS = (VaroptCodec(k=6, head=3), SampleCodec(draws=7), TopkCodec(k=5), FullCodec())


def make_bench(run: AuditedRun) -> Bench:
    store = run.cache.store
    reader = CacheReader(store)
    return Bench(store, reader, find_teacher(store, reader.identity, None), ROWS, DRAWS)


@pytest.fixture(scope="module")
def found(run: AuditedRun) -> dict[CodecConfig, Audited]:
    return make_bench(run).measure(CONFIGS, lambda done, total: None)


@pytest.fixture(scope="module")
def positions(run: AuditedRun) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [P, V] of the targets of the sequences, and uniforms [S, P, 7]."""
    model, rows = load_model(run.teacher).eval(), run.cache.rows
    chosen = np.unique(np.linspace(0, len(rows) - 1, ROWS).astype(int))
    logits, noise = [], []
    for row in chosen:
        ids, segments, mask, *_ = row_tensors(rows.take(np.array([row])), torch.device("cpu"))
        with torch.no_grad():
            logits.append(compute_logits(model, ids, segments, VOCAB)[0][mask[0]])
        names = torch.from_numpy(rows.sample_ids[row : row + 1].copy())
        seeds = range(SEED, SEED + DRAWS)
        drawn = [uniforms(seed, names, ROW_LENGTH, 7)[0, mask[0]] for seed in seeds]
        noise.append(torch.stack(drawn))
    return torch.cat(logits), torch.cat(noise, 1)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_figures_are_those_of_sums_in_float64(
    config: CodecConfig,
    found: dict[CodecConfig, Audited],
    positions: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, noise = positions
    scaled = logits.double() / TEMPERATURE
    # Chunks of 64 positions, in each of which the stand-in for a student blurs the one before.
    chunks = [(part + part.roll(1, 0)) / 2 for part in scaled.split(64)]
    p, q = scaled.softmax(-1).numpy(), torch.cat(chunks).softmax(-1).numpy()
    codec = make_codec(config, VOCAB)
    draws = DRAWS if codec.streams else 1
    payloads = [
        codec.encode(logits, noise[s][:, : codec.streams], temperature=TEMPERATURE).payload
        for s in range(draws)
    ]
    targets = codec.decode(torch.stack(payloads))
    t = np.array(
        [[dense_target(targets, draw, at, q[at]) for at in range(len(p))] for draw in range(draws)]
    )
    error = p - t
    square = (error**2).sum(-1).mean(0)
    bias, variance = square, np.zeros(len(p))
    if draws > 1:
        variance = error.var(0, ddof=1).sum(-1)
        bias = (error.mean(0) ** 2).sum(-1) - variance / draws
    fidelity = found[config].fidelity
    gradient = q - p
    wide = fidelity.widest.positions
    of_mean = (error[:, :wide].mean(1) ** 2).sum(-1).mean() / (gradient[:wide].mean(0) ** 2).sum()
    assert fidelity.positions == len(p)
    assert fidelity.squared_bias == pytest.approx(bias.mean(), rel=1e-4, abs=1e-7)
    assert fidelity.variance == pytest.approx(variance.mean(), rel=1e-4)
    ratio = square.mean() / (gradient**2).sum(-1).mean()
    assert fidelity.directions[0].error == pytest.approx(math.sqrt(ratio), rel=1e-4)
    assert fidelity.loss_bias == pytest.approx(-(error * -np.log(q)).sum(-1).mean(), abs=1e-5)
    if wide == len(p) // 64 * 64:
        assert fidelity.widest.error == pytest.approx(math.sqrt(of_mean), rel=1e-3)


def test_threads_change_no_figure(run: AuditedRun, found: dict[CodecConfig, Audited]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = make_bench(run).measure(CONFIGS, lambda done, total: None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert again == found


def test_progress_ends_with_all_positions(run: AuditedRun) -> None:
    bench, seen = make_bench(run), []
    bench.measure(CONFIGS[:1], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (bench.positions, bench.positions)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
