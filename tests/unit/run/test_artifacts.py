"""Fingerprints: what names an artifact, and what is operational."""

from pathlib import Path

import pytest

from kdscale.config import RunConfig, fingerprint
from kdscale.config.operational import recipe
from kdscale.errors import KdscaleError
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.pipeline import run_pipeline
from tests.runs import tiny_config, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", ["abc", "bisect"])


def run(corpus: Path, **changes: object) -> RunArtifacts:
    tree = tiny_config(corpus, str(corpus.parent / "output"), data__evaluate={}, **changes)
    return RunArtifacts(RunConfig.model_validate(tree))


def test_rows_are_named_by_their_config_and_their_source(corpus: Path) -> None:
    first = run(corpus).prepare_fingerprint
    assert run(corpus, seed=9, cache__sequences=32).prepare_fingerprint == first
    assert run(corpus, data__seq_len=32).prepare_fingerprint != first
    (corpus / "bisect.py").write_text("# another text, long enough to be kept by the cleaning\n")
    assert run(corpus).prepare_fingerprint != first


def test_other_evaluation_sets_leave_the_teacher_as_it_is(corpus: Path, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", ["queue"])
    first = run(corpus)
    tree = tiny_config(corpus, str(tmp_path / "output"), data__evaluation_sequences=7)
    tree["data"]["evaluate"] = {"more": {"kind": "text", "path": str(other)}}
    tree["data"]["evaluation_context"] = 16
    second = RunArtifacts(RunConfig.model_validate(tree))
    assert second.prepare_fingerprint != first.prepare_fingerprint
    assert second.teacher_fingerprint == first.teacher_fingerprint
    assert run(corpus, data__seq_len=32).teacher_fingerprint != first.teacher_fingerprint


def test_a_teacher_is_named_by_its_recipe_not_by_its_workers(corpus: Path) -> None:
    first = run(corpus).teacher_fingerprint
    same = run(
        corpus,
        teacher__workers={"count": 5},
        teacher__training__micro_batch_size=2,
        teacher__training__zero={"stage": 3},
        teacher__training__checkpoint_every=7,
    )
    assert same.teacher_fingerprint == first
    assert run(corpus, teacher__training__steps=7).teacher_fingerprint != first
    assert run(corpus, seed=9).teacher_fingerprint != first


def test_a_missing_corpus_or_teacher_is_found_before_anything_runs(corpus: Path) -> None:
    with pytest.raises(KdscaleError, match="nowhere"):
        _ = run(corpus.parent / "nowhere").prepare_fingerprint
    lost = run(corpus, teacher={"load": "./lost"}, data__tokenizer={"kind": "teacher"})
    with pytest.raises(KdscaleError, match=r"folder './lost' does not exist"):
        _ = lost.prepare_fingerprint


def test_stages_that_did_not_run_are_named(corpus: Path) -> None:
    with pytest.raises(KdscaleError, match="teacher of this config is not complete"):
        run(corpus).teacher()
    with pytest.raises(KdscaleError, match="no prepared data"):
        _ = run(corpus).cache_identity


def test_a_run_with_a_base_has_rows_teacher_and_cache_there(corpus: Path) -> None:
    first = run(corpus)
    child = RunArtifacts(
        first.config.model_copy(update={"output": "/elsewhere", "base": first.output.url})
    )
    assert child.prepared_store == first.prepared_store
    assert child.model_store("teacher") == first.model_store("teacher")
    assert child.model_store("student").url == "/elsewhere/student"
    assert child.teacher_fingerprint == first.teacher_fingerprint
    with pytest.raises(KdscaleError, match=f"not complete in {first.output}/teacher"):
        child.teacher()


def test_a_base_that_lacks_something_is_named(corpus: Path) -> None:
    config = run(corpus).config
    child = config.model_copy(
        update={"output": str(corpus.parent / "child"), "base": str(corpus.parent / "empty")}
    )
    with pytest.raises(KdscaleError) as caught:
        run_pipeline(child, until="cache")
    assert "base, has not completed its stage 'prepare'" in caught.value.problem
    assert "--until cache" in caught.value.fix


def test_operational_fields_are_in_no_recipe(corpus: Path) -> None:
    config = run(corpus).config
    assert recipe(config.teacher)["training"].keys() == {
        *("steps", "global_batch_size", "optimiser", "dropout", "early_stopping", "keep"),
        *("validate_every", "validation_sequences"),
    }
    assert {"workers", "baseline", "cache_folder"}.isdisjoint(recipe(config.distill))
    assert recipe(config.cache).keys() == {"codec", "temperature", "sequences"}


def test_a_loaded_student_is_named_by_the_state_of_its_model(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunArtifacts, "cache_fingerprint", "0" * 16)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    loaded = {"load": str(folder)}
    first = run(corpus, distill__student=loaded)
    name = first.student_fingerprint("student")
    assert first.keeps_before
    assert first.evaluated_names == ["student", "baseline", "before"]
    assert run(corpus, distill__student=loaded).student_fingerprint("student") == name
    (folder / "README.md").write_text("a card, as an evaluation writes it")
    assert run(corpus, distill__student=loaded).student_fingerprint("student") == name
    (folder / "model.safetensors").write_bytes(b"other weights")
    again = run(corpus, distill__student=loaded)
    assert again.student_fingerprint("student") != name
    assert again.student_fingerprint("before") != first.student_fingerprint("before")
    on_hub = [
        run(corpus, distill__student={"load": "some/model", "revision": revision})
        for revision in ("a", "b")
    ]
    assert on_hub[0].student_fingerprint("student") != on_hub[1].student_fingerprint("student")
    own = run(corpus)
    assert not own.keeps_before
    assert own.evaluated_names == ["student", "baseline"]
    assert own.student_fingerprint("student") == fingerprint(
        "student", recipe(own.config.distill), "0" * 16, own.config.seed
    )
