"""Plain columns, vLLM's and axolotl's: which token an entry is about, and what it says."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.importing.imported import Imported, check_against, import_set, positions, run
from tests.unit.importing.sets import (
    Source,
    axolotl_rows,
    column_rows,
    make_source,
    vllm_rows,
    write_json,
    write_parquet,
)

K = 20
LENGTHS = (30, 12, 41, 25, 9, 33, 18, 40)


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source(LENGTHS)


def all_targets(found: Imported, source: Source) -> None:
    counted = [(p.sequence, p.token) for p in check_against(found, source, K)]
    assert sorted(counted) == [(s, t) for s, n in enumerate(LENGTHS) for t in range(1, n)]


@pytest.mark.parametrize("entries", ["all", "inner", "own"])
@pytest.mark.parametrize("write", [write_parquet, write_json])
def test_columns_of_ids_and_log_probabilities(
    tmp_path: Path, tokenizer: Path, source: Source, entries: str, write: object
) -> None:
    name = "set.parquet" if write is write_parquet else "set.jsonl"
    write(tmp_path / name, column_rows(source, K, entries))  # type: ignore[operator]
    all_targets(import_set(tmp_path / name, tmp_path / "out", tokenizer), source)


def test_vllm_s_prompt_logprobs(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    path = write_json(tmp_path / "set.jsonl", vllm_rows(source, K))
    found = import_set(path, tmp_path / "out", tokenizer)
    # The actual token, which vLLM adds where it is not among the K, is left out.
    assert found.reader.codec.describe()["k"] == K
    all_targets(found, source)


def test_vllm_s_answer_follows_its_prompt(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    rows = vllm_rows(source, K)
    for row in rows:
        tokens, entries = row["prompt_token_ids"], row["prompt_logprobs"]
        row["outputs"] = [{"token_ids": tokens[5:], "logprobs": entries[5:]}]
        row["prompt_token_ids"], row["prompt_logprobs"] = tokens[:5], entries[:5]
    path = write_json(tmp_path / "set.jsonl", rows)
    all_targets(import_set(path, tmp_path / "out", tokenizer), source)


def test_axolotl_s_entries_end_at_the_last_token(
    tmp_path: Path, tokenizer: Path, source: Source
) -> None:
    path = write_parquet(tmp_path / "set.parquet", axolotl_rows(source, K, answer=6))
    found = check_against(import_set(path, tmp_path / "out", tokenizer), source, K)
    counted = sorted((p.sequence, p.token) for p in found)
    assert counted == [(s, t) for s, n in enumerate(LENGTHS) for t in range(n - 6, n)]


def test_masks_say_what_is_a_target(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    rows = column_rows(source, K)
    for row in rows:
        length = len(row["input_ids"])
        row["labels"] = [-100] * 4 + row["input_ids"][4:]
        row["attention_mask"] = [1] * (length - 2) + [0] * 2
    path = write_json(tmp_path / "set.jsonl", rows)
    found = positions(import_set(path, tmp_path / "out", tokenizer), source)
    counted = sorted((p.sequence, p.token) for p in found)
    assert counted == [(s, t) for s, n in enumerate(LENGTHS) for t in range(4, n - 2)]


@pytest.mark.parametrize("pack", [True, False])
def test_long_sequences_are_split_and_short_ones_share_rows(
    tmp_path: Path, tokenizer: Path, source: Source, pack: bool
) -> None:
    path = write_parquet(tmp_path / "set.parquet", column_rows(source, K))
    options = ("--seq-len", "16", *([] if pack else ["--no-pack"]))
    found = import_set(path, tmp_path / "out", tokenizer, *options)
    all_targets(found, source)
    rows = found.reader.read(np.arange(len(found.reader))).rows
    assert rows.input_ids.shape[1] == 16
    assert (rows.segment_ids.max() > 1) == pack
    # Bytes of text are those of the targets, whatever the rows.
    texts = sum(map(len, source.tokens))
    assert 0 < rows.byte_counts.sum() < 4 * texts


def test_a_repeated_sequence_is_imported_once(
    tmp_path: Path, tokenizer: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = column_rows(source, K)
    path = write_json(tmp_path / "set.jsonl", [*rows, *rows])
    all_targets(import_set(path, tmp_path / "out", tokenizer), source)
    assert run("import", str(path), str(tmp_path / "other"), "--teacher", "a/b", "--tokenizer",
               str(tokenizer), "--dry-run") == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert f"sequences: {len(rows)} ({len(rows)} repetitions left out" in printed
    assert not (tmp_path / "other").exists()


def test_fewer_ids_leave_more_to_the_ghost(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    path = write_parquet(tmp_path / "set.parquet", column_rows(source, K))
    check_against(import_set(path, tmp_path / "out", tokenizer, "--top-k", "5"), source, 5)


@pytest.mark.parametrize("values", ["probs", "logits", "renormalised", "auto"])
def test_the_rest_is_known_of_probabilities_alone(
    tmp_path: Path, tokenizer: Path, source: Source, values: str
) -> None:
    rows = column_rows(source, K)
    for row in rows:
        whole = np.array(row["top_logprobs"])
        mass = np.log(np.exp(whole).sum(1, keepdims=True))
        change = {
            "probs": np.exp(whole),
            "logits": whole + 7.5,
            "renormalised": whole - mass,
            "auto": whole - mass,  # seen by its mass, which is 1 everywhere
        }
        row["top_logprobs"] = change[values].tolist()
    path = write_json(tmp_path / "set.jsonl", rows)
    found = import_set(path, tmp_path / "out", tokenizer, "--values", values)
    about = found.reader.identity["import"]
    assert about["rest"] == ("ghost" if values == "probs" else "unknown")
    if values == "probs":
        all_targets(found, source)
        return
    for position in positions(found, source):
        ids, log_probs = source.top(position.sequence, K)
        p = np.exp(log_probs[position.token - 1])
        np.testing.assert_allclose(
            position.probs[ids[position.token - 1]], p / p.sum(), rtol=0.006, atol=1e-6
        )
        assert position.ghost == 0
