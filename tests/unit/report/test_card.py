"""The model card: what the hub reads, what people read, nothing asked of the network."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from kdscale.config import parse_config
from kdscale.errors import KdscaleError
from kdscale.report import facts, markdown, model_card, tables, write_model_card, write_report
from tests.unit.evaluate.finished import make_finished_run
from tests.unit.report.page import read_page
from tests.unit.report.sample import CONFIG, class_results, sample_results, sample_run

HUB_CONFIG = {
    "teacher": {"load": "Qwen/Qwen3-8B"},
    "data": {"train": {"kind": "huggingface", "path": "HuggingFaceFW/fineweb"}, "seq_len": 1024},
    "distill": {"training": {"steps": 5000, "global_batch_size": 64}},
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the card asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_front_matter_is_what_the_hub_reads() -> None:
    data = ModelCard(model_card(sample_results(), "student", HUB_CONFIG)).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["knowledge-distillation", "kdscale"]
    assert data.base_model == "Qwen/Qwen3-8B"
    assert data.datasets == ["HuggingFaceFW/fineweb"]
    assert data.model_name == "quickstart-student"
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert found["validation", "loss"] == 3.3821
    assert found["python-docs", "perplexity"] == pytest.approx(108.875, abs=1e-3)
    assert len(found) == 6


def test_front_matter_names_each_set_of_a_mixture() -> None:
    train = [
        {"kind": "huggingface", "path": "a/b", "weight": 1.0},
        {"kind": "text", "path": "corpus", "weight": 1.0},
        {"kind": "huggingface", "path": "c/d", "weight": 2.0},
    ]
    card = ModelCard(
        model_card(sample_results(), "student", HUB_CONFIG | {"data": {"train": train}})
    )
    assert card.data.datasets == ["a/b", "c/d"]


def test_body_says_how_it_was_made_and_what_it_scores() -> None:
    text = model_card(sample_results(), "student", HUB_CONFIG)
    for words in (
        "distilled from `Qwen/Qwen3-8B`",
        "codec varopt (k 12, head 4, head_bits 8), 15.23 bytes per token, stored",
        "Steps: 5,000, each of 64 sequences of 1024 tokens.",
        "Seed: 0.",
        "| student | 419 k | 3.3821 | 29.43 | 1.6825 | 0.0156 | 0.0039 (T 0.96) |",
        "| student, validation | 71.3% | 65.2% | 0.4031 | 0.4417 |",
        "AutoModelForCausalLM.from_pretrained",
        "Evaluated on validation, python-docs only",
    ):
        assert words in text
    assert "{{" not in text


@pytest.mark.parametrize("make", [sample_results, class_results])
def test_page_summary_and_card_carry_the_same_figures(tmp_path: Path, make: Any) -> None:
    results = make()
    store = sample_run(tmp_path, results)
    summary, card = write_report(store), write_model_card(store)
    page = read_page(store.get("report/index.html").decode())
    shown_tables = {t.all("caption")[0].text: t for t in page.all("table")}
    shown = tables.result_tables(results)
    assert len(shown) == 6
    for expected in shown:
        rows = shown_tables[expected.caption].all("tr")
        cells = [[c.text for c in row.children] for row in rows]
        assert cells == [expected.header, *expected.rows]
        assert markdown.table(expected) in card
        assert markdown.table(expected) in summary
    tiles = [item.text for item in page.all("ul")[0].all("li")]
    figures = facts.key_figures(results)
    assert tiles == [f"{each.value} {each.meaning}" for each in figures]
    assert [f"- **{each.value}** {each.meaning}" in card for each in figures] == [True] * len(tiles)
    assert facts.headline(results) in page.text
    assert facts.headline(results) in card


@pytest.mark.parametrize("load", [None, "s3://bucket/teacher", "/models/teacher", "./teacher"])
def test_a_teacher_outside_the_hub_is_no_base_model(load: str | None) -> None:
    text = model_card(sample_results(), "student", {"teacher": {"load": load}})
    assert "base_model" not in yaml.safe_load(text.split("---")[1])


def test_a_folder_that_looks_like_a_hub_name_is_no_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ModelCard(model_card(sample_results(), "student", HUB_CONFIG)).data.base_model is None


def test_the_baseline_says_that_it_had_no_teacher() -> None:
    text = model_card(sample_results(), "baseline", HUB_CONFIG)
    card = ModelCard(text)
    assert card.data.base_model is None
    assert card.data.tags == ["kdscale"]
    assert "trained on the labels alone" in text
    assert "codec" not in text


def test_without_config_the_card_still_stands() -> None:
    assert "a teacher trained in the same run" in model_card(sample_results())


def test_non_finite_results_stay_out_of_the_front_matter() -> None:
    results = sample_results()
    results["models"]["student"]["domains"]["validation"]["loss"] = float("nan")
    data = ModelCard(model_card(results)).data
    assert ("validation", "loss") not in {
        (r.dataset_name, r.metric_type) for r in data.eval_results
    }


def test_a_model_that_was_not_trained_is_a_user_error() -> None:
    with pytest.raises(
        KdscaleError, match="has no baseline in its results: it holds teacher, stud"
    ):
        model_card(sample_results(("teacher", "student")), "baseline")


def test_the_card_is_written_beside_the_weights(tmp_path: Path) -> None:
    store = sample_run(tmp_path)
    text = write_model_card(store)
    assert store.get("student/README.md").decode() == text
    assert "Steps: 200, each of 8 sequences of 128 tokens." in text


LORA = {"r": 8, "alpha": 16.0, "target_modules": ["q_proj", "v_proj"]}


def test_an_adapter_is_used_with_its_base_and_its_training_named() -> None:
    config = HUB_CONFIG | {"distill": {"student": {"lora": LORA, "load": "org/small"}}}
    text = model_card(sample_results(), "student", config, adapter_base="org/small")
    assert ModelCard(text).data.library_name == "peft"
    assert (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "path/to/this/folder"\n'
        'base = AutoModelForCausalLM.from_pretrained("org/small")\n'
        "model = PeftModel.from_pretrained(base, folder).merge_and_unload()\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
    ) in text
    assert "LoRA: adapters of rank 8, alpha 16, on `q_proj`, `v_proj`; all other weights" in text


def test_a_merged_student_is_used_as_any_other() -> None:
    lora = LORA | {"target_modules": "all-linear"}
    config = HUB_CONFIG | {"distill": {"student": {"lora": lora}}}
    text = model_card(sample_results(), "student", config)
    assert ModelCard(text).data.library_name == "transformers"
    assert (
        '```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nfolder = "path'
        '/to/this/folder"\nmodel = AutoModelForCausalLM.from_pretrained(folder)\ntokenizer'
    ) in text
    assert "on all linear maps but the head; all other weights" in text
    assert "LoRA" not in model_card(sample_results(), "teacher", config)


CACHED = "/root/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/b968826d"


def test_a_folder_of_the_hubs_cache_has_the_hubs_name() -> None:
    data = ModelCard(model_card(sample_results(), "student", {"teacher": {"load": CACHED}})).data
    assert data.base_model == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("teacher", "data", "licence"),
    [
        (None, None, "unknown"),
        ("apache-2.0", None, "unknown"),
        ("apache-2.0", "apache-2.0", "apache-2.0"),
        ("llama3.1", "cc-by-4.0", "other"),
    ],
)
def test_licences_are_those_of_the_config(
    teacher: str | None, data: str | None, licence: str
) -> None:
    given = {"teacher_licence": teacher, "data_licence": data}
    card = {name: value for name, value in given.items() if value is not None}
    text = model_card(sample_results(), "student", HUB_CONFIG | {"card": card})
    assert ModelCard(text).data.license == licence
    said = f"teacher: {teacher or 'unknown'}. Licence of the training text: {data or 'unknown'}."
    assert said in text


def test_a_licence_that_is_a_sentence_is_refused() -> None:
    with pytest.raises(KdscaleError, match="data_licence"):
        parse_config(CONFIG, ["card.data_licence=ask my lawyer"])


def snippet(card: str, folder: Path) -> str:
    """Return the card's Python with the place of the model."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert '"path/to/this/folder"' in code
    return str(code).replace("path/to/this/folder", str(folder))


def test_the_snippet_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_finished_run(tmp_path)
    code = snippet(write_model_card(store), tmp_path / "output" / "student")
    found: dict[str, Any] = {}
    exec(code, found)
    # A library may have warned on the lines before.
    _, prompt, rest = capsys.readouterr().out.partition("The first thing to know")
    assert prompt
    assert rest.strip()
    assert found["output"].shape[1] > found["inputs"]["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (sample_results() | {"task": "masked-lm"}, "tokenizer.mask_token_id"),
        (class_results(), "model.config.id2label["),
        (sample_results() | {"chat": "by its template"}, "tokenizer.apply_chat_template("),
    ],
)
def test_every_task_has_its_snippet(results: Any, words: str) -> None:
    code = snippet(model_card(results), Path("x"))
    compile(code, "card", "exec")
    assert words in code
