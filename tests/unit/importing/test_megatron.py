"""Megatron-LM's tars: the samples of all ranks in the order of the run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.importing.imported import check_against, import_set, positions, run
from tests.unit.importing.sets import (
    Source,
    V,
    make_source,
    write_megatron,
    write_samples,
)

K = 24
SAMPLES, LENGTH = 24, 17


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source([LENGTH] * SAMPLES)


@pytest.mark.parametrize(
    "layout",
    [
        {"version": 1},
        {"version": 1, "ranks": 3, "micro_batch": 1, "micro_batches": 2},
        {"version": 1, "context": 2},
        {"version": 2},
        {"version": 2, "ranks": 2, "micro_batch": 1, "micro_batches": 3, "packed_bits": "flat"},
        {"version": 2, "ranks": 1, "micro_batch": 4, "packed_bits": "last"},
    ],
)
def test_every_sample_has_its_own_distributions(
    tmp_path: Path, tokenizer: Path, source: Source, layout: dict[str, Any]
) -> None:
    write_megatron(tmp_path / "tars", source, k=K, **layout)
    write_samples(tmp_path / "tokens.parquet", source)
    options = ("--tokens", str(tmp_path / "tokens.parquet"))
    found = import_set(tmp_path / "tars", tmp_path / "out", tokenizer, *options)
    # Stored as float16 by Megatron, and once more here.
    targets = check_against(found, source, K, relative=0.01)
    counted = sorted((p.sequence, p.token) for p in targets)
    assert counted == [(s, t) for s in range(SAMPLES) for t in range(1, LENGTH)]


def test_a_nucleus_leaves_its_rest_to_the_ghost(
    tmp_path: Path, tokenizer: Path, source: Source
) -> None:
    write_megatron(tmp_path / "tars", source, k=K, version=2, nucleus=0.8)
    write_samples(tmp_path / "tokens.parquet", source)
    options = ("--tokens", str(tmp_path / "tokens.parquet"))
    found = import_set(tmp_path / "tars", tmp_path / "out", tokenizer, *options)
    for position in positions(found, source):
        ids, values = source.top(position.sequence, K)
        ids, p = ids[position.token - 1], np.exp(values[position.token - 1])
        kept = p.cumsum() - p < 0.8
        np.testing.assert_allclose(position.probs[ids[kept]], p[kept], rtol=0.01, atol=1e-6)
        others = np.ones(V, bool)
        others[ids[kept]] = False
        assert position.probs[others].max() == 0
        assert abs(position.ghost - (1 - p[kept].sum())) < 3e-3


def test_later_samples_find_their_tokens(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    """The first tar is gone: version 2 names the samples of the others."""
    write_megatron(tmp_path / "tars", source, k=K, version=2, ranks=1)
    write_samples(tmp_path / "tokens.parquet", source)
    (tmp_path / "tars" / "dp0__0-4.tar").unlink()
    options = ("--tokens", str(tmp_path / "tokens.parquet"))
    found = import_set(tmp_path / "tars", tmp_path / "out", tokenizer, *options)
    assert {p.sequence for p in check_against(found, source, K, relative=0.01)} == set(
        range(4, SAMPLES)
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run("import", *arguments) == 2
    return capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, tokenizer: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    tars, tokens = tmp_path / "tars", tmp_path / "tokens.parquet"
    write_megatron(tars, source, k=K, version=1)
    common = (str(tars), str(tmp_path / "out"), "--teacher", "a/b", "--tokenizer", str(tokenizer))
    assert "there are no tokens" in refused(capsys, *common)
    write_samples(tokens, Source(source.tokens[:5], source.log_probs[:5]))
    assert "is sample 5 of the run, and the tokens end before it" in refused(
        capsys, *common, "--tokens", str(tokens)
    )
    write_samples(tokens, Source(source.tokens[::-1], source.log_probs[::-1]))
    assert "less likely than chance" in refused(capsys, *common, "--tokens", str(tokens))
    write_samples(tokens, source)
    (tars / "cp0_dp1__5.tar").unlink()
    assert "do not hold the same iterations" in refused(capsys, *common, "--tokens", str(tokens))
    for tar in tars.glob("cp0_dp1__*.tar"):
        tar.rename(tars / tar.name.replace("dp1", "dp2"))
    assert "The tars of rank cp0_dp1 are missing" in refused(
        capsys, *common, "--tokens", str(tokens)
    )
    assert not (tmp_path / "out").exists()
