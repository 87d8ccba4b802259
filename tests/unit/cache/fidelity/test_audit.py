"""The whole audit of a small cache: what it compares, what it recommends, when it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.fidelity.audit import Audit, audit, find_teacher, recommend
from kdscale.cache.format.packing import Packing, packable
from kdscale.config.cache import FullCodec, TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from tests.unit.cache.fidelity.conftest import ROWS, AuditedRun
from tests.unit.cache.planted import VOCAB, planted_prior


@pytest.fixture(scope="module")
def found(run: AuditedRun) -> Audit:
    return audit(run.cache.store, rows=ROWS, draws=3, say=lambda line: None)


def test_own_codec_is_measured_on_what_the_cache_holds(run: AuditedRun, found: Audit) -> None:
    own, rows = found.own, run.cache.rows
    assert own.config == VaroptCodec(k=6, head=3)
    assert found.agrees
    assert found.proof["differing"] == 0
    assert own.fidelity.positions == rows.loss_mask.sum()
    assert own.fidelity.draws == 3
    assert abs(own.fidelity.squared_bias) < 4 * own.fidelity.squared_bias_error
    assert own.bytes_in_memory == run.cache.codec.bytes_per_position
    # Its first draw is the capture's, so its stored size is what the cache holds.
    assert packable(run.cache.codec)
    packing = Packing(run.cache.codec, planted_prior(rows))
    mask = rows.loss_mask
    packed = packing.pack(rows.input_ids[mask], run.cache.payload[mask])
    assert own.bytes_stored == len(packed) / mask.sum()


def test_others_are_compared_on_the_same_positions(found: Audit) -> None:
    kinds = {codec.config.kind for codec in found.codecs}
    assert kinds == {"varopt", "sample", "topk", "full"}
    assert {codec.fidelity.positions for codec in found.codecs} == {found.own.fidelity.positions}
    assert len({codec.config for codec in found.codecs}) == len(found.codecs)
    rest = [codec.bytes_stored for codec in found.codecs]
    assert rest == sorted(rest)
    assert found.own in found.codecs
    full = next(codec for codec in found.codecs if codec.config == FullCodec())
    assert full.fidelity.kept_mass == pytest.approx(1, abs=1e-5)
    assert full.fidelity.distinct_ids == VOCAB
    assert full.fidelity.widest.error == min(c.fidelity.widest.error for c in found.codecs)
    assert full.fidelity.kl == pytest.approx(0, abs=1e-4)
    for codec in found.codecs:
        if codec.config.kind in ("varopt", "sample"):
            assert abs(codec.fidelity.squared_bias) < 5 * codec.fidelity.squared_bias_error
        if isinstance(codec.config, TopkCodec):
            assert codec.fidelity.variance == 0
            assert codec.fidelity.draws == 1


def test_the_budget_is_kept_and_used(run: AuditedRun) -> None:
    found = audit(run.cache.store, rows=ROWS, budget=9, draws=2, say=lambda line: None)
    assert found.budget == 9
    assert found.recommended is not None
    assert found.recommended.bytes_stored <= 9
    within = [codec for codec in found.codecs if codec.bytes_stored <= 9]
    least = min(codec.fidelity.widest.error for codec in within)
    assert found.recommended.fidelity.widest.error == least
    # The size between those that were tried first.
    varopt = [c for c in within if c.family == "varopt, head 2 x 8 bits"]
    assert max(codec.bytes_stored for codec in varopt) > 7


def test_nothing_may_fit(found: Audit) -> None:
    assert recommend(found.codecs, 0.1) is None


def test_a_cache_of_other_draws_does_not_agree(misaligned: AuditedRun) -> None:
    found = audit(misaligned.cache.store, rows=4, draws=2, say=lambda line: None)
    assert not found.agrees
    assert found.rows == 4


def test_teacher_by_name(run: AuditedRun, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run.output / "cache" / "0123", alone)
    with pytest.raises(KdscaleError, match="no teacher beside the cache") as caught:
        audit(open_store(str(alone)), rows=2)
    assert "--teacher" in caught.value.fix
    named = str(run.output / "teacher")
    assert audit(open_store(str(alone)), teacher=named, rows=2, draws=2, say=str).agrees


def test_another_teacher_is_refused(run: AuditedRun, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.output / "teacher", other)
    weights = other / "model.safetensors"
    data = np.fromfile(weights, np.uint8)
    data[-4] ^= 1
    data.tofile(weights)
    with pytest.raises(KdscaleError, match="captured from"):
        audit(run.cache.store, teacher=str(other), rows=2)


@pytest.mark.parametrize(("revision", "given"), [("abc123", "abc123"), ("main", None)])
def test_a_hub_teacher_is_taken_at_the_cache_s_revision(
    run: AuditedRun, revision: str, given: str | None
) -> None:
    store, identity = run.cache.store, {"teacher": f"somebody/model@{revision}"}
    found = find_teacher(store, identity, "somebody/model")
    assert (found.source, found.revision) == ("somebody/model", given)
    with pytest.raises(KdscaleError, match="captured from somebody/model"):
        find_teacher(store, identity, "somebody/other")
