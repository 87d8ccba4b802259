"""The teacher's positions in order, with the capture's noise; and the proof that a cache is its."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.codecs import uniforms
from kdscale.cache.fidelity.measure import CHUNK
from kdscale.cache.fidelity.positions import Proof, draw_positions, run_teacher
from kdscale.cache.read.reader import CacheReader
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec
from kdscale.models.forward import compute_logits, row_tensors
from kdscale.models.load import load_model
from tests.unit.cache.fidelity.conftest import SEED, AuditedRun, capture
from tests.unit.cache.planted import ROW_LENGTH, VOCAB

CPU = torch.device("cpu")
ROWS = np.arange(9)


def test_positions_are_the_targets_of_the_rows_in_order(run: AuditedRun) -> None:
    model = load_model(run.teacher).eval()
    cached = CacheReader(run.cache.store).read(ROWS)
    found = list(draw_positions(run_teacher(model, cached, VOCAB, CPU), (SEED, 7), streams=3))
    mask = cached.rows.loss_mask
    targets = mask.sum()
    assert [len(part.logits) for part in found] == [CHUNK, targets - CHUNK]
    ids, segments, *_ = row_tensors(cached.rows, CPU)
    with torch.no_grad():
        logits = compute_logits(model, ids, segments, VOCAB)[torch.from_numpy(mask)]
    assert torch.allclose(torch.cat([part.logits for part in found]), logits, atol=1e-5)
    contexts = torch.cat([part.contexts for part in found])
    assert contexts.tolist() == cached.rows.input_ids[mask].tolist()
    names = torch.from_numpy(cached.rows.sample_ids)
    noise = torch.cat([part.noise for part in found], dim=1)
    for draw, seed in enumerate((SEED, 7)):
        expected = uniforms(seed, names, ROW_LENGTH, 3)[torch.from_numpy(mask)]
        assert torch.equal(noise[draw], expected)


def prove(run: AuditedRun) -> dict[str, float]:
    model, reader = load_model(run.teacher).eval(), CacheReader(run.cache.store)
    proof = Proof(reader.codec, reader.identity)
    rows = run_teacher(model, reader.read(ROWS), VOCAB, CPU)
    assert len(list(proof.check(rows))) == len(ROWS)
    return proof.result()


@pytest.mark.parametrize("config", [None, SampleCodec(draws=5), TopkCodec(k=4), FullCodec()])
def test_a_cache_of_the_teacher_comes_out_the_same(
    teacher: Path, tmp_path: Path, config: CodecConfig | None
) -> None:
    made = capture(tmp_path, teacher, config)
    found = prove(made)
    assert found["positions"] == made.cache.rows.loss_mask[ROWS].sum()
    assert found["differing"] == 0
    assert found["ids_in_common"] == 1
    assert found["entropy_gap"] == pytest.approx(0, abs=1e-6)
    assert found["nll_gap"] == pytest.approx(0, abs=1e-6)


def test_other_draws_share_the_head_only(misaligned: AuditedRun) -> None:
    found = prove(misaligned)
    assert found["differing"] > 0.8 * found["positions"]
    assert 0.2 < found["ids_in_common"] < 0.9
    assert found["entropy_gap"] == pytest.approx(0, abs=1e-6)


def test_another_teacher_differs_in_entropy_and_loss(run: AuditedRun) -> None:
    model, reader = load_model(run.teacher).eval(), CacheReader(run.cache.store)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    proof = Proof(reader.codec, reader.identity)
    list(proof.check(run_teacher(model, reader.read(ROWS), VOCAB, CPU)))
    found = proof.result()
    assert found["entropy_gap"] > 0.1
    assert found["nll_gap"] > 0.05
    assert found["ids_in_common"] < 0.9
