"""DistillKit's layouts, written anew from their description, and what comes out of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.importing import sets
from tests.unit.importing.imported import Imported, check_against, import_set, positions
from tests.unit.importing.sets import (
    Source,
    V,
    make_source,
    write_distillkit,
    write_legacy,
    write_parquet,
)

LENGTHS = (30, 12, 41, 25, 9)
# With fewer ids, as the tests' vocabulary is small.
RECOMMENDED = sets.RECOMMENDED | {"d": V, "k": 64}
BUDGET = sets.BUDGET | {"d": V}
PUBLISHED = sets.PUBLISHED | {"d": V, "k": 64}
BINS = RECOMMENDED | {
    "exact_k": 8,
    "exact_dtype": "float16",
    "polynomial_terms": [0, 1, "exp"],
    "normalize_t": True,
    "residual_bins": [
        {"scale_dtype": "float16", "element_bits": 8, "num_elements": 16},
        {"scale_dtype": "float32", "element_bits": 3, "num_elements": 15},
        {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 5},
    ],
}
ONLY_EXACT = RECOMMENDED | {"exact_k": 64, "polynomial_terms": None, "exact_dtype": "float64"}


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source(LENGTHS)


def check_meant(
    found: Imported, source: Source, meant: list[tuple[np.ndarray, np.ndarray]], *, known: bool
) -> None:
    """Hold every target against the values that the written bytes stand for."""
    targets = positions(found, source)
    counted = sorted((p.sequence, p.token) for p in targets)
    assert counted == [(s, t) for s, n in enumerate(LENGTHS) for t in range(1, n)]
    for position in targets:
        ids, values = (each[position.token - 1] for each in meant[position.sequence])
        p = np.exp(values)
        p = p / max(1.0, p.sum()) if known else p / p.sum()
        np.testing.assert_allclose(position.probs[ids], p, rtol=0.008, atol=1e-6)
        assert abs(position.ghost - (1 - p.sum())) < 2e-3


@pytest.mark.parametrize(
    "config",
    [RECOMMENDED, BUDGET, PUBLISHED, BINS, ONLY_EXACT],
    ids=["rec", "bud", "pub", "bins", "exact"],
)
def test_compressed(
    tmp_path: Path, tokenizer: Path, source: Source, config: dict[str, Any]
) -> None:
    meant = write_distillkit(tmp_path / "set", source, config)
    found = import_set(tmp_path / "set", tmp_path / "out", tokenizer)
    assert found.reader.identity["import"]["layout"] == "DistillKit, compressed"
    check_meant(found, source, meant, known=True)
    # What the bytes stand for is close to the teacher's own distribution.
    for ids, values in meant:
        assert ids.shape[1] == config["k"]
        assert np.isfinite(values).all()


def test_exact_values_are_the_teacher_s(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    write_distillkit(tmp_path / "set", source, ONLY_EXACT)
    check_against(import_set(tmp_path / "set", tmp_path / "out", tokenizer), source, 64)


def test_legacy_logits_have_an_unknown_rest(
    tmp_path: Path, tokenizer: Path, source: Source
) -> None:
    config = {"vocab_size": V, "k": 40, "exact_k": 10, "polynomial_degree": 5}
    meant = write_legacy(tmp_path / "set", source, config)
    found = import_set(tmp_path / "set", tmp_path / "out", tokenizer)
    assert found.reader.identity["import"] == {
        "layout": "DistillKit, legacy",
        "values": "logits",
        "rest": "unknown",
    }
    check_meant(found, source, meant, known=False)


def test_plain_columns(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    rows, meant = [], []
    for number, tokens in enumerate(source.tokens):
        ids, values = (each[:-1] for each in source.top(number, 30))
        meant.append((ids, values))
        rows.append(
            {
                "input_ids": tokens.tolist(),
                "token_ids": ids.tolist(),
                "top_values": values.tolist(),
            }
        )
    path = write_parquet(tmp_path / "data.parquet", rows)
    found = import_set(path, tmp_path / "out", tokenizer)
    assert found.reader.identity["import"]["layout"] == "DistillKit, plain"
    check_meant(found, source, meant, known=True)


def test_packed_rows_of_arrow_files(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    """Two documents a row, cut to their entries, with their number in `attention_mask`."""
    rows = []
    for first in (0, 2):
        parts: list[Any] = [
            (number, tokens[:-1], *(each[:-1] for each in source.top(number, 30)))
            for number, tokens in list(enumerate(source.tokens))[first : first + 2]
        ]
        rows.append(
            {
                "input_ids": [int(t) for _, tokens, _, _ in parts for t in tokens],
                "attention_mask": [n - first + 1 for n, tokens, _, _ in parts for _ in tokens],
                "token_ids": [each.tolist() for _, _, ids, _ in parts for each in ids],
                "top_values": [each.tolist() for _, _, _, values in parts for each in values],
            }
        )
    table = pa.Table.from_pylist(rows)
    path = tmp_path / "set" / "data-00000-of-00001.arrow"
    path.parent.mkdir()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (path.parent / "state.json").write_text("{}")
    found = import_set(path.parent / "*.arrow", tmp_path / "out", tokenizer)
    counted = sorted((p.sequence, p.token) for p in positions(found, source))
    # The last token of each was cut off: it is predicted, and not there.
    assert counted == [(s, t) for s, n in enumerate(LENGTHS[:4]) for t in range(1, n - 1)]
