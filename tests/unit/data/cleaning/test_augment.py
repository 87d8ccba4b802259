"""Varied copies: what each step may change, how much of it, and that it is the same each time."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kdscale.config.augment import AugmentConfig, AugmentStep
from kdscale.config.data import DataConfig
from kdscale.data.cleaning.augment import Augmenter, load_table, vary
from kdscale.data.prepare import data_identity
from kdscale.errors import KdscaleError

TEXT = "\n".join(" ".join(f"w{10 * line + word}" for word in range(10)) for line in range(40))
WORDS = TEXT.split()
STEPS: dict[str, dict[str, Any]] = {
    "delete": {"share": 0.2},
    "swap": {"share": 0.2},
    "replace": {"share": 0.2},
    "crop": {"least": 0.3},
}
_STEP: TypeAdapter[AugmentStep] = TypeAdapter(AugmentStep)


def varied(kind: str, text: str = TEXT, seed: int = 0, **fields: Any) -> str:
    step = _STEP.validate_python({"kind": kind, **STEPS[kind], **fields})
    tables = {path: load_table(path) for path in [fields["table"]]} if "table" in fields else {}
    return vary(text, step, np.random.default_rng(seed), tables)


def test_deleted_words_are_about_the_share_and_the_rest_keeps_its_order() -> None:
    found = varied("delete").split()
    assert 0.7 * len(WORDS) < len(found) < 0.9 * len(WORDS)
    places = [WORDS.index(word) for word in found]
    assert places == sorted(places)


def test_swapped_words_are_neighbours() -> None:
    found = varied("swap").split()
    assert sorted(found) == sorted(WORDS)
    moved = [at for at, word in enumerate(found) if word != WORDS[at]]
    assert 40 < len(moved) < 160
    assert all(abs(WORDS.index(found[at]) - at) == 1 for at in moved)
    # Line ends stay where they are.
    assert [len(line.split()) for line in varied("swap").split("\n")] == [10] * 40


def test_replaced_words_are_of_the_same_document() -> None:
    found = varied("replace").split()
    assert set(found) <= set(WORDS)
    changed = sum(one != other for one, other in zip(found, WORDS, strict=True))
    assert 40 < changed < 120


def test_synonyms_keep_capitals_and_punctuation(tmp_path: Path) -> None:
    table = tmp_path / "synonyms.tsv"
    table.write_text("big\tlarge, huge\nHouse\thome\n\n")
    found = varied("replace", "A big house, Big dog. House!", share=0.999, table=str(table))
    assert found.replace("huge", "large").replace("Huge", "Large") == (
        "A large home, Large dog. Home!"
    )
    (tmp_path / "bad.tsv").write_text("big large\n")
    with pytest.raises(KdscaleError, match=r"Line 1 of .* is no word with its synonyms"):
        load_table(str(tmp_path / "bad.tsv"))
    with pytest.raises(KdscaleError, match="is not there"):
        load_table(str(tmp_path / "none.tsv"))


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_is_a_part_of_the_text(seed: int) -> None:
    found = varied("crop", seed=seed)
    assert found in TEXT
    assert 0.29 * len(WORDS) <= len(found.split()) <= len(WORDS)


@pytest.mark.parametrize("kind", STEPS)
@given(text=st.text(max_size=30))
def test_no_text_becomes_empty_or_breaks(kind: str, text: str) -> None:
    found = varied(kind, text)
    assert bool(found.strip()) == bool(text.strip())


def test_copies_are_the_same_each_time_and_differ_from_one_another() -> None:
    config = AugmentConfig.model_validate(
        {"copies": 3, "steps": [{"kind": "crop"}, {"kind": "delete"}]}
    )
    first, again = (list(Augmenter(config).vary(TEXT)) for _ in range(2))
    assert first == again
    assert len(set(first)) == 3
    assert TEXT not in first
    # A text that nothing can be done with has no copies.
    assert list(Augmenter(config).vary("one")) == []


def test_tables_travel_with_what_uses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in other folders, on other machines."""
    (tmp_path / "synonyms.tsv").write_text("big\tlarge\n")
    monkeypatch.chdir(tmp_path)
    steps = [{"kind": "replace", "share": 0.999, "table": "synonyms.tsv"}]
    sent = pickle.dumps(Augmenter(AugmentConfig.model_validate({"steps": steps})))
    (tmp_path / "synonyms.tsv").unlink()
    assert list(pickle.loads(sent).vary("a big house")) == ["a large house"]


def test_rows_have_another_name_when_a_table_changes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    table = tmp_path / "synonyms.tsv"
    steps = [{"kind": "replace", "table": str(table)}]
    source = {"kind": "text", "path": str(tmp_path / "a.txt")}
    config = DataConfig.model_validate({"train": source, "augment": {"steps": steps}})
    with pytest.raises(KdscaleError, match="is not there"):
        data_identity(config)
    found = []
    for line in ("big\tlarge\n", "big\thuge\n"):
        table.write_text(line)
        found.append(data_identity(config))
    assert found[0] != found[1]
