"""lm-eval on a finished run: its figures against our own, where they go, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from kdscale.cli import app
from kdscale.errors import KdscaleError
from kdscale.evaluate import harness
from kdscale.evaluate.harness import HarnessOptions, merge, named_folders, run_tasks
from kdscale.evaluate.heldout import last_word_items, passages, task_names
from kdscale.evaluate.results import read_results
from kdscale.evaluate.schema import HarnessTask
from kdscale.models.load import load_model
from kdscale.run.finished_run import FinishedRun
from kdscale.store import open_store
from tests.unit.evaluate.finished import make_finished_run

OWN_TASK = """
task: one_plus_one
dataset_path: json
dataset_kwargs: {data_files: {test: %s}, cache_dir: %s}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: ["2", "3"]
doc_to_target: 0
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_finished_run(folder)
    return folder / "output"


def lm_eval(output: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["lm-eval", str(output), *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_teacher_student_and_baseline_are_scored_offline(output: Path) -> None:
    printed = lm_eval(output)
    found = read_results(open_store(str(output)))["lm_eval"]
    assert sorted(found) == task_names()
    for task in found.values():
        assert set(task["scores"]) == {"teacher", "student", "baseline"}
        assert task["documents"] >= 8
        assert task["limit"] is None
        assert len(task["task_hash"]) == 64
    error = found["heldout_cloze"]["scores"]["teacher"]["acc"]["stderr"]
    assert error is not None
    assert error > 0
    for text in (
        printed,
        (output / "report" / "index.html").read_text(),
        (output / "student" / "README.md").read_text(),
    ):
        assert "heldout_cloze" in text
        assert "acc_norm ↑" in text
        assert "bits_per_byte ↓" in text


def test_bits_per_byte_are_those_of_the_model_itself(output: Path) -> None:
    lm_eval(output, "--tasks", "heldout_bits_per_byte", "--models", "student")
    run = FinishedRun(open_store(str(output)))
    prepared = run.prepared()
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder())
    model = load_model(run.model_folder("student"))
    nats, size = 0.0, 0
    for text in passages(prepared, "validation", tokenizer):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])
        with torch.no_grad():
            # The embedding is padded to 448 rows; ids beyond the tokenizer have no probability.
            logits = model(ids).logits[0, :-1, : prepared.vocab_size]
        assert model(ids).logits.shape[-1] > prepared.vocab_size
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        size += len(text.encode())
    got = read_results(run.output)["lm_eval"]["heldout_bits_per_byte"]["scores"]["student"]
    assert got["bits_per_byte"]["value"] == pytest.approx(nats / size / math.log(2), rel=1e-4)


def test_the_last_word_is_scored_with_the_space_before_it(output: Path) -> None:
    lm_eval(output, "--tasks", "heldout_last_word", "--models", "student")
    run = FinishedRun(open_store(str(output)))
    prepared = run.prepared()
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder())
    model = load_model(run.model_folder("student"))
    losses = []
    for item in last_word_items(list(passages(prepared, "validation", tokenizer))):
        context = tokenizer.encode(item["context"])
        ids = torch.tensor([tokenizer.encode(f"{item['context']} {item['word']}")])
        with torch.no_grad():
            logits = model(ids).logits[0, len(context) - 1 : -1, : prepared.vocab_size]
        target = ids[0, len(context) :]
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="sum").item())
    got = read_results(run.output)["lm_eval"]["heldout_last_word"]["scores"]["student"]
    expected = math.exp(sum(losses) / len(losses))
    assert got["perplexity"]["value"] == pytest.approx(expected, rel=1e-3)


def test_a_users_task_and_another_folder(output: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "1+1="}\n{"question": "one and one is "}\n')
    (tmp_path / "own.yaml").write_text(OWN_TASK % (tmp_path / "data.jsonl", tmp_path / "cache"))
    arguments = ("--tasks", "one_plus_one", "--include-path", str(tmp_path), "--limit", "1")
    lm_eval(output, *arguments, "--models", "student", "--model", f"copy={output / 'student'}")
    found = read_results(open_store(str(output)))["lm_eval"]["one_plus_one"]
    assert found["scores"]["copy"] == found["scores"]["student"]
    assert (found["documents"], found["limit"]) == (1, 1)


def test_a_task_without_its_data_is_refused(output: Path) -> None:
    with pytest.raises(KdscaleError, match="'piqua'") as caught:
        run_tasks({}, HarnessOptions(["piqua"]))
    assert "heldout_cloze" in caught.value.fix


def test_scores_of_the_same_task_stay_and_others_go() -> None:
    def entry(model: str, documents: int = 9) -> HarnessTask:
        return {
            "lm_eval": "1",
            "task_version": "1.0",
            "task_hash": "h",
            "few_shot": 0,
            "documents": documents,
            "limit": None,
            "higher_is_better": {"acc": True},
            "scores": {model: {"acc": {"value": 0.5, "stderr": None}}},
        }

    old = {"a": entry("teacher"), "b": entry("teacher")}
    merged = merge(old, {"a": entry("student"), "b": entry("student", documents=3)})
    assert set(merged["a"]["scores"]) == {"teacher", "student"}
    assert set(merged["b"]["scores"]) == {"student"}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KdscaleError) as caught:
        run_tasks({}, HarnessOptions(["heldout_cloze"]))
    assert "pip install 'kdscale[eval]'" in caught.value.fix


@pytest.mark.parametrize("text", ["folder", "=folder", "name=", "student=folder"])
def test_malformed_models_are_refused(output: Path, text: str) -> None:
    with pytest.raises(KdscaleError, match="no other model"):
        named_folders(FinishedRun(open_store(str(output))), [], [text])


def test_a_model_that_the_run_has_not_is_refused(output: Path) -> None:
    with pytest.raises(KdscaleError, match="no complete assistant"):
        named_folders(FinishedRun(open_store(str(output))), ["assistant"], [])
    with pytest.raises(KdscaleError, match="not the output of a run"):
        named_folders(FinishedRun(open_store(str(output / "student"))), ["student"], [])
