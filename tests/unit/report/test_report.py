"""The whole report of a whole run, and of runs that lack something."""

import math
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.evaluate.results import write_results
from kdscale.evaluate.schema import Results
from kdscale.report import write_model_card, write_report
from kdscale.report.load import load_report_data
from kdscale.store import open_store
from tests.unit.report.page import Element, read_page
from tests.unit.report.sample import class_results, sample_results, sample_run


def _report(folder: Path, results: Results | None = None) -> tuple[str, Element]:
    store = sample_run(folder, results)
    summary = write_report(store)
    assert store.get("report/summary.md").decode() == summary
    return summary, read_page(store.get("report/index.html").decode())


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Element]:
    """Return summary and page of the sample run."""
    return _report(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def page(sample: tuple[str, Element]) -> Element:
    """Return the page of the sample run."""
    return sample[1]


def _headings(page: Element) -> list[str]:
    return [h.text for h in page.all("h2")]


def test_the_page_says_what_the_results_say(page: Element) -> None:
    assert page.all("html")[0].attributes["lang"] == "en"
    assert [h.text for h in page.all("h1")] == ["quickstart"]
    lead = page.all("p")[1].text
    size = "8.9 times smaller and 4.5 (4.3 to 4.7) times faster"
    for words in ("419 k parameters", size, "29.9% of the loss gap", "15.2 bytes"):
        assert words in lead
    assert [li.all("strong")[0].text for li in page.all("li")[:2]] == ["8.9×", "4.5×"]
    assert _headings(page) == [
        "Quality",
        "Cost",
        "Cache",
        "Training",
        "Curriculum",
        "Disagreements",
        "Speed",
        "Calibration",
        "Samples",
        "Configuration and provenance",
    ]
    student = [cell.text for cell in page.all("tbody")[0].all("tr")[1].all("td")]
    assert student[:4] == ["419 k", "3.3821", "29.43", "1.6825"]
    assert student[5:] == ["0.0039 (T 0.96)"]
    fidelity = next(t for t in page.all("table") if t.children[0].text.startswith("Fidelity"))
    assert [cell.text for cell in fidelity.all("tbody")[0].all("tr")[0].children] == [
        *("student, validation", "71.3%", "65.2%", "0.4031", "0.4417"),
    ]
    changes = next(t for t in page.all("table") if t.children[0].text.startswith("Change from"))
    assert [[cell.text for cell in row.children] for row in changes.all("tbody")[0].all("tr")] == [
        ["teacher, python-docs", "+1.3595", "+0.6763", "+0.0000"],
        ["student, python-docs", "+1.3081", "+0.6508", "+0.0000"],
        ["baseline, python-docs", "+1.2785", "+0.6360", "+0.0000"],
    ]
    context = "Context: at least 16 of its document's tokens before each, or all there are."
    assert context in page.text
    facts = {
        row.all("th")[0].text: row.all("td")[0].text for row in page.all("tr") if row.all("td")
    }
    assert facts["Codec"] == "varopt (k 12, head 4, head_bits 8)"
    assert facts["Size of all objects"] == "3.07 MiB"
    assert facts["Units"] == "8"
    assert facts["Config fingerprint"] == "9f0c2ab417de55aa"
    assert facts["Memory"] == "16.0 GiB"
    assert facts["cache"] == "5.12 k"
    assert "warmup_share: 0.0" in page.all("pre")[0].text


def test_the_page_is_accessible_and_alone(page: Element) -> None:
    drawings = page.all("svg")
    assert len(drawings) == 11
    identifiers = [e.attributes["id"] for e in page.all("svg")]
    assert len(set(identifiers)) == len(identifiers)
    for svg in drawings:
        title, description = svg.children[:2]
        assert (title.name, description.name) == ("title", "desc")
        assert title.text
        assert description.text
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-labelledby"] == title.attributes["id"]
        assert svg.attributes["aria-describedby"] == description.attributes["id"]
    for table in page.all("table"):
        assert table.children[0].name == "caption"
        assert table.children[0].text
        assert all("scope" in header.attributes for header in table.all("th"))
    assert not page.all("script")
    assert not page.all("img")
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]
    assert "url(" not in page.all("style")[0].text
    assert "@import" not in page.all("style")[0].text


def test_the_loss_chart_compares_student_and_baseline(page: Element) -> None:
    chart = next(svg for svg in page.all("svg") if svg.attributes["id"] == "loss")
    keys = [text.text for text in chart.all("text")]
    assert [key for key in keys if key in ("student", "baseline", "teacher")] == [
        *("student", "baseline", "teacher"),
    ]
    described = chart.all("desc")[0].text
    assert "teacher, evaluated: 3.051." in described
    assert "student, train: from " in described


def test_the_gap_has_its_interval(page: Element) -> None:
    chart = next(svg for svg in page.all("svg") if svg.attributes["id"] == "gap")
    whiskers = [e for e in chart.all("g") if e.attributes.get("class") == "whisker"]
    assert len(whiskers) == 1  # one set of two has an interval
    assert "29.9% (27.4–32.3) of the gap recovered" in chart.all("desc")[0].text


def test_links_lead_to_every_section_in_order(page: Element) -> None:
    (nav,) = page.all("nav")
    links = [(link.text, link.attributes["href"]) for link in nav.all("a")]
    sections = page.all("section")
    assert links == [(s.all("h2")[0].text, f"#{s.attributes['id']}") for s in sections]
    assert nav.attributes["aria-label"] == "Sections"


def test_charts_bring_the_data_they_draw(page: Element) -> None:
    figure = next(f for f in page.all("figure") if f.all("svg")[0].attributes["id"] == "loss")
    (data,) = figure.all("table")
    header = [cell.text for cell in data.all("thead")[0].all("th")]
    assert header[0] == "Optimiser step"
    assert header[1:3] == ["student, train", "student, validation"]
    steps = [row.all("th")[0].text for row in data.all("tbody")[0].all("tr")]
    assert steps == [str(step) for step in range(20, 201, 20)]
    assert all(len(row.all("td")) == 5 for row in data.all("tbody")[0].all("tr"))


def test_confusions_are_shaded_by_their_share_of_the_class(tmp_path: Path) -> None:
    _, page = _report(tmp_path, class_results())
    tables = {t.all("caption")[0].text: t for t in page.all("table")}
    cells = tables["validation: predictions of the student by label"].all("td")
    assert [cell.text for cell in cells[:3]] == ["93", "4", "3"]
    assert [cell.attributes["style"] for cell in cells[:3]] == [
        "--share: 93%",
        "--share: 4%",
        "--share: 3%",
    ]
    assert "reaches a macro F1 of 94.7% on validation" in page.text


def test_what_the_cache_is_stands_with_the_provenance(tmp_path: Path) -> None:
    results = sample_results()
    results["cache"] |= {"fingerprint": "65850a7ff2db", "identity": {"seq_len": 128}}  # type: ignore[operator]
    results["chat"] = "answers are marked by the template itself"
    _, page = _report(tmp_path, results)
    sections = {s.attributes["id"]: s.text for s in page.all("section")}
    assert "65850a7ff2db" not in sections["cache"]
    provenance = sections["configuration-and-provenance"]
    assert "Cache: fingerprint65850a7ff2db" in provenance
    assert "Cache: seq len128" in provenance
    assert "Chat templateanswers are marked by the template itself" in provenance


def test_the_summary_is_a_github_table(sample: tuple[str, Element]) -> None:
    summary, _ = sample
    lines = summary.splitlines()
    assert lines[0] == "# quickstart"
    figures = "3.3821 | 29.43 | 1.6825 | 0.0156 | 0.0039 (T 0.96)"
    assert f"| student | 419 k | {figures} |" in lines
    assert f"| :--- |{' ---: |' * 6}" in lines
    assert "| validation | 29.9% (27.4–32.3) |" in lines
    assert any(line.startswith("| all | 7 min 27 s | 6 min 20 s | 0.2425 |") for line in lines)
    assert any(line.startswith("15.23 bytes per token stored, codec varopt") for line in lines)


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "a|b", 'x" onload="y', "</title>"])
def test_names_cannot_become_markup(tmp_path: Path, evil: str) -> None:
    results = sample_results(run=evil)
    for model in results["models"].values():
        model["domains"][evil] = model["domains"].pop("python-docs")
    results["gap_recovered"][evil] = results["gap_recovered"].pop("python-docs")
    results["output"] = results["versions"]["torch"] = evil
    results["seconds"][evil] = 1.0
    summary, page = _report(tmp_path, results)
    assert page.all("h1")[0].text == evil
    assert not page.all("script")
    assert not any(key.startswith("on") for svg in page.all("svg") for key in svg.attributes)
    assert "<" not in summary
    tables = [line for line in summary.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in tables}
    assert widths <= {3, 5, 6, 7, 8, 9, 10}


def test_numbers_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    results = sample_results()
    student = results["models"]["student"]["domains"]["validation"]
    student["loss"] = student["ece"] = math.nan
    student["perplexity"] = math.inf
    for found in student["calibration"]:
        found["confidence"] = math.nan
    results["gap_recovered"]["validation"] = None
    results["seconds"]["distill"] = math.nan
    summary, page = _report(tmp_path, results)
    figures = "NaN | ∞ | 1.6825 | NaN | 0.0039 (T 0.96)"
    assert f"| student | 419 k | {figures} |" in summary

    assert page.all("tbody")[0].all("tr")[1].all("td")[2].text == "∞"
    assert "The losses do not give a gap to recover." in page.text


def test_a_run_without_baseline_claims_nothing(tmp_path: Path) -> None:
    store = sample_run(tmp_path, sample_results(("teacher", "student")))
    (tmp_path / "metrics" / "baseline.jsonl").unlink()
    summary = write_report(store)
    page = read_page(store.get("report/index.html").decode())
    assert (
        "Without a baseline (distill.baseline) no gain over the labels can be claimed." in summary
    )
    assert "of the loss gap" not in page.text
    assert not [svg for svg in page.all("svg") if svg.attributes["id"] == "gap"]
    assert "baseline, validation" not in page.text


def test_a_run_of_a_teacher_only(tmp_path: Path) -> None:
    results = sample_results(("teacher",))
    results["cache"] = None
    store = open_store(str(tmp_path))
    write_results(store, results)
    summary = write_report(store)
    page = read_page(store.get("report/index.html").decode())
    assert "holds the teacher's results only" in summary
    assert _headings(page) == [
        "Quality",
        "Cost",
        "Training",
        "Calibration",
        "Configuration and provenance",
    ]
    assert "No metrics were recorded." in page.text
    assert [row.all("th")[0].text for row in page.all("tbody")[0].all("tr")] == ["teacher"]


def test_a_run_without_any_model(tmp_path: Path) -> None:
    results = sample_results(())
    results["cache"], results["seconds"] = None, {}
    store = open_store(str(tmp_path))
    write_results(store, results)
    assert "has no student" in write_report(store)


def test_a_student_worse_than_its_baseline(tmp_path: Path) -> None:
    results = sample_results()
    results["gap_recovered"]["validation"] = -0.125
    summary, page = _report(tmp_path, results)
    assert "is worse than the same student trained on the labels alone" in summary
    assert "-12.5%" in page.text


def test_missing_results_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="--only evaluate"):
        write_report(open_store(str(tmp_path)))


def test_a_line_cut_short_is_left_out_at_the_end_only(tmp_path: Path) -> None:
    store = sample_run(tmp_path)
    whole = '{"step": 10, "tokens": 1, "train/loss": 3.5, "note": "x", "lr": null}\n'
    store.put("metrics/baseline.jsonl", (whole + '{"step": 20, "tra').encode())
    assert load_report_data(store).series("baseline", "train/loss") == [(10, 3.5)]
    assert load_report_data(store).series("baseline", "lr") == []
    store.put("metrics/baseline.jsonl", ('{"step": 20, "tra\n' + whole).encode())
    with pytest.raises(KdscaleError, match=r"metrics/baseline\.jsonl .*line 1"):
        load_report_data(store)


@pytest.mark.parametrize("line", ["[1]", "3", '{"tokens": 5}', '{"step": "x"}'])
def test_a_line_that_is_no_metrics_is_refused(tmp_path: Path, line: str) -> None:
    store = sample_run(tmp_path)
    store.put("metrics/baseline.jsonl", f'{line}\n{{"step": 1}}\n'.encode())
    with pytest.raises(KdscaleError, match="line 1"):
        load_report_data(store)


def test_a_config_of_another_version_is_shown_as_it_is(tmp_path: Path) -> None:
    store = sample_run(tmp_path)
    store.put("config.resolved.yaml", b"future: {key: 1}\n")
    write_report(store)
    run = load_report_data(store)
    assert run.setting("future.key") == 1
    assert run.setting("future.key.deeper") is None
    assert run.setting("distill.training.steps") is None
    assert "future: {key: 1}" in read_page(store.get("report/index.html").decode()).text


def test_credentials_stay_out_of_what_is_passed_on(tmp_path: Path) -> None:
    url = "s3://key:hunter2@bucket/run"
    store = sample_run(tmp_path, sample_results(output=url))
    store.put("config.resolved.yaml", f"output: {url}\n".encode())
    summary = write_report(store)
    page, results = store.get("report/index.html"), store.get("results.json")
    assert b"s3://***@bucket/run" in page
    assert b"hunter2" not in page + results + summary.encode()


def test_speed_and_size_stand_side_by_side(tmp_path: Path, sample: tuple[str, Element]) -> None:
    summary, page = sample
    row = "| student | 419 k | 1.60 MiB | 41.0 k | 4.5 (4.3 to 4.7) | 3.10 ms | 4.20 ms | 52.4 ms |"
    assert [line for line in summary.splitlines() if line.startswith(row)]
    assert "CPU, 1 thread, float32" in page.text
    assert "medians of 15 turns (5 of single sequences)" in page.text
    assert "8.9 times smaller and 4.5 (4.3 to 4.7) times faster than its teacher" in page.text
    assert "as many tokens per second (4.3 to 4.7), CPU" in page.text
    assert row in write_model_card(sample_run(tmp_path / "card"))


@pytest.mark.parametrize(
    ("times", "interval", "said"),
    [
        (5.9, [5.24, 6.36], " and 5.9 (5.2 to 6.4) times faster"),
        (1.2, [0.98, 1.4], ""),
        (16.0, None, ""),
        (None, None, ""),
        (0.5, [0.4, 0.8], " and 2.0 (1.2 to 2.5) times slower"),
    ],
)
def test_the_headline_tells_a_speed_with_its_interval_or_none(
    times: float | None, interval: list[float] | None, said: str, tmp_path: Path
) -> None:
    results = sample_results()
    speed = results["speed"]["models"]["student"]
    if times is None:  # as results without intervals were written
        del speed["times_teacher"], speed["times_teacher_interval"]
        del results["speed"]["latency_turns"]
    else:
        speed["times_teacher"], speed["times_teacher_interval"] = times, interval
    store = sample_run(tmp_path, results)
    summary = write_report(store)
    page = store.get("report/index.html").decode()
    expected = f"8.9 times smaller{said} than its teacher, recovers"
    assert expected in summary
    assert expected in page
    assert expected in write_model_card(store)
    assert ("as many tokens per second (" in page) == bool(said)
    assert "41.0 k" in summary


def test_samples_are_folded(page: Element) -> None:
    (samples,) = [s for s in page.all("section") if s.attributes["id"] == "samples"]
    (folded,) = samples.all("details")
    assert "open" not in folded.attributes
    assert folded.all("table")
    assert all(child.name != "table" for child in samples.children)


def test_samples_are_shown_as_they_are(page: Element) -> None:
    (table,) = [t for t in page.all("table") if t.attributes.get("class") == "texts"]
    texts = {row.all("th")[0].text: row.all("td")[0].text for row in table.all("tr")}
    assert texts["prompt"] == "def less(a, b):\n    if a <"
    assert texts["document"] == " b:\n        return True"
    assert texts["student"] == " <b>student</b>"
    assert not page.all("b")


def test_lm_eval_stands_in_report_and_card(tmp_path: Path) -> None:
    results = sample_results()
    scores = {"acc": {"value": 0.41, "stderr": 0.03}, "bits": {"value": 2.5, "stderr": None}}
    results["lm_eval"] = {
        "cloze": {
            "lm_eval": "0.4.13",
            "task_version": "1.0",
            "task_hash": "0",
            "few_shot": 0,
            "documents": 1234,
            "limit": None,
            "higher_is_better": {"acc": True, "bits": False},
            "scores": {"student": scores, "other": scores, "teacher": scores},
        }
    }
    summary, page = _report(tmp_path, results)
    assert "| Task | Figure | Documents | teacher | student | other |" in summary
    line = "0.4100 ± 0.0300 | 0.4100 ± 0.0300 | 0.4100 ± 0.0300"
    assert f"| cloze | acc ↑ | 1,234 | {line} |" in summary
    assert "| cloze | bits ↓ | 1,234 | 2.5000 | 2.5000 | 2.5000 |" in summary
    assert "lm-eval" in _headings(page)
    assert line in write_model_card(sample_run(tmp_path / "card", results))
