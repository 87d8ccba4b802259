"""Metrics as JSON lines, and real W&B runs, read back with W&B's own tool."""

import json
import math
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from kdscale.config.run import RunConfig, TrackingConfig
from kdscale.evaluate.schema import Results
from kdscale.report.load import load_report_data
from kdscale.report.panels import panels
from kdscale.store import Store, open_store
from kdscale.tracking import wandb_run
from kdscale.tracking import wandb_view as workspace
from kdscale.tracking.panels import Panel, fit
from kdscale.tracking.trackers import Tracker, open_tracker
from kdscale.tracking.wandb_run import WandbRun, open_wandb_run
from kdscale.tracking.wandb_view import build_view
from tests.runs import tiny_config
from tests.s3 import S3Server, free_ports
from tests.unit.report.sample import class_results, sample_results, sample_run

OFF = TrackingConfig(wandb="disabled")
OFFLINE = TrackingConfig(wandb="offline", project="tests")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B without the account, settings and caches of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "account" / name))
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def start(store: Store, config: TrackingConfig = OFF, **options: Any) -> Tracker:
    return open_tracker(
        config, run="night", stage="distill", store=store, resolved={"seed": 1}, **options
    )


def lines_of(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.get("metrics/distill.jsonl").splitlines()]


def steps_of(store: Store) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in lines_of(store)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what tracking itself logged; wandb logs things when it was imported before."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "kdscale.tracking.wandb_run"
    ]


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


def records_of(log: Path, kind: str) -> list[dict[str, Any]]:
    """All records of one kind in a run's log, by `wandb leet inspect`."""
    program = Path(sys.executable).parent / "wandb"
    command = [str(program), "leet", "inspect", str(log), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    return [record[kind] for record in records if record["type"] == kind]


def test_a_line_is_there_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    tracker = start(store)
    tracker.log(1, 100, {"train/loss": 2.5, "lr": 1})
    (line,) = lines_of(store)
    assert line.pop("time") > 1.7e9
    assert line == {"step": 1, "tokens": 100, "train/loss": 2.5, "lr": 1.0}
    assert sorted(os.listdir(tmp_path)) == ["metrics"]


def test_what_is_not_finite_is_null_in_strict_json(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    start(store).log(1, 1, {"a": math.nan, "b": math.inf, "c": 0.5})
    (line,) = lines_of(store)
    assert (line["a"], line["b"], line["c"]) == (None, None, 0.5)


def test_a_resumed_training_replays_what_followed_its_checkpoint(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    first = start(store)
    for step in (1, 2, 3, 4):
        first.log(step, step, {"loss": 1.0})
    path = tmp_path / "metrics" / "distill.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "los')  # Torn by a kill.
    second = start(store, start_step=2)
    assert steps_of(store) == [(1, 1.0), (2, 1.0)]
    second.log(3, 3, {"loss": 9.0})
    assert steps_of(store) == [(1, 1.0), (2, 1.0), (3, 9.0)]
    second.finish()
    start(store)
    assert lines_of(store) == []


@pytest.mark.s3
def test_a_remote_store_gets_the_lines_at_each_flush(s3_env: S3Server) -> None:
    store = open_store(f"{s3_env.url}/{uuid.uuid4().hex}")
    first = start(store)
    first.log(1, 1, {"loss": 1.0})
    first.flush()
    assert steps_of(store) == [(1, 1.0)]
    first.log(2, 2, {"loss": 1.0})
    assert steps_of(store) == [(1, 1.0)]
    second = start(store, start_step=1)
    second.log(2, 2, {"loss": 2.0})
    second.finish()
    assert steps_of(store) == [(1, 1.0), (2, 2.0)]


def test_an_offline_run_holds_everything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "student" / "deep"
    model.mkdir(parents=True)
    (model / "weights.bin").write_bytes(b"12345")
    store = open_store(str(tmp_path / "out"))
    tracker = open_tracker(
        OFFLINE,
        run="night",
        stage="distill",
        store=store,
        resolved={"seed": 1, "source": ["ftp://me:hunter2@host/x"]},
        attempt=3,
    )
    for step in (10, 20):
        tracker.log(step, step * 8, {"train/loss": 1 / step})
    tracker.log_reference("cache", "cache", "s3://bucket/manifest.json", {"rows": 7})
    tracker.log_reference("local", "cache", str(tmp_path / "manifest.json"), {})
    tracker.log_folder("student", "model", tmp_path / "student", {"steps": 20})
    tracker.summary({"loss": 0.05, "verdict": "good"})
    tracker.finish()

    printed = capfd.readouterr()
    (log,) = offline_runs(tmp_path / "out")
    folder = log.parent
    assert (printed.out, printed.err) == ("", "")
    assert said(caplog) == [
        f"W&B: offline. Look: wandb leet {folder}   Upload: wandb sync {folder}"
    ]

    (run,) = records_of(log, "run")
    assert (run["project"], run["run_group"], run["job_type"]) == ("tests", "night", "distill")
    assert run["config"]["update"]["seed"] == 1
    assert run["config"]["update"]["source"] == ["ftp://***@host/x"]
    names = ("trainer/global_step", "trainer/tokens", "trainer/attempt", "train/loss")
    history = [[row["item"][name] for name in names] for row in records_of(log, "history")]
    assert history == [[10, 80, 3, 0.1], [20, 160, 3, 0.05]]
    metrics = records_of(log, "metric")
    globs = {each["glob_name"]: each["step_metric"] for each in metrics if "glob_name" in each}
    assert globs == {"*": "trainer/global_step"}
    updates = [update for each in records_of(log, "summary") for update in each["update"].items()]
    assert ("loss", 0.05) in updates
    assert ("verdict", "good") in updates
    assert [each["exit_code"] for each in records_of(log, "exit")] == [0]

    artifacts = {each["name"]: each for each in records_of(log, "artifact")}
    assert artifacts["cache"]["manifest"]["contents"][0]["ref"] == "s3://bucket/manifest.json"
    assert json.loads(artifacts["cache"]["metadata"]) == {"rows": 7}
    assert (
        artifacts["local"]["manifest"]["contents"][0]["ref"] == f"file://{tmp_path}/manifest.json"
    )
    (file,) = artifacts["student"]["manifest"]["contents"]
    assert (file["path"], int(file["size"])) == ("deep/weights.bin", 5)


PANELS = [
    Panel("quality", "gap", "bars", ("domain", "share"), [["validation", 49.0], ["docs", 41.5]]),
    Panel("quality", "scores", "table", ("Model", "Loss"), [["student", "5.05"]]),
    Panel(
        "quality", "errors", "confusion", ("label", "guess", "n"), [["a", "b", 3], ["a", "a", 9]]
    ),
    Panel("training", "loss", "lines", ("step", "nats", "line"), [[1, 2.5, "ftp://me:x@host/x"]]),
]


def test_charts_and_tables_are_the_runs_own(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    tree = tiny_config(tmp_path / "corpus", str(tmp_path), name="night")
    config = RunConfig.model_validate({**tree, "tracking": OFFLINE})
    gallery = open_wandb_run(config, "report", store)
    gallery.summary({"gap_recovered": 0.49})
    gallery.show(PANELS)
    gallery.finish()
    assert not (tmp_path / "metrics").exists()

    (log,) = offline_runs(tmp_path)
    (run,) = records_of(log, "run")
    assert (run["run_group"], run["job_type"]) == ("night", "report")
    prefix = "_wandb.visualize."
    drawn = {
        key.removeprefix(prefix): chart["panel_config"]
        for each in records_of(log, "config")
        for key, chart in each["update"].items()
        if key.startswith(prefix)
    }
    assert list(drawn) == ["quality/gap", "quality/errors", "training/loss"]
    assert_all_there(log, PANELS)

    # A view of the project draws them from the same tables in the same way.
    view = build_view("team", "tests", "night", run["run_id"], PANELS)._to_model()
    charts = {
        panel.config.string_settings["title"]: panel.config
        for section in view.spec.section.panel_bank_config.sections
        for panel in section.panels
        if panel.view_type == "Vega2"
    }
    for key, own in drawn.items():
        chart = charts[key.split("/")[1]]
        assert chart.panel_def_id == own["panelDefId"]
        assert chart.field_settings == own["fieldSettings"]
        (query,) = own["userQuery"]["queryFields"]
        (source,) = [f for f in query["fields"] if f["name"] == "summaryTable"]
        assert source["args"] == [{"name": "tableKey", "value": f"{key}_table"}]
        assert f'"{key}_table"' in chart.user_query.model_dump_json()


def assert_all_there(log: Path, shown: list[Panel]) -> None:
    """Every panel is in the offline run of that log, with all of its cells."""
    history = [row["item"] for row in records_of(log, "history")]
    assert len(history) == len(shown)
    for item, panel in zip(history, shown, strict=True):
        key = panel.key if panel.kind == "table" else f"{panel.key}_table"
        saved = json.loads((log.parent / "files" / item[f"{key}.path"]).read_text())
        assert saved["columns"] == list(panel.columns)
        assert saved["data"] == [redacted(row) for row in panel.rows]
    artifacts = [each["name"] for each in records_of(log, "artifact")]
    assert len(set(artifacts)) == len(artifacts) == len(shown)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,127}", name) for name in artifacts)


def redacted(row: list[Any]) -> list[Any]:
    return ["ftp://***@host/x" if "@" in str(cell) else cell for cell in row]


def with_harness() -> Results:
    """Causal results with lm-eval's figures beside the speed table."""
    figure = {"value": 0.25, "stderr": 0.01}
    results = sample_results()
    results["lm_eval"] = {
        "arc_easy": {
            "documents": 2376,
            "limit": 100,
            "lm_eval": "0.4.9",
            "task_version": "1.0",
            "task_hash": "0",
            "few_shot": 0,
            "higher_is_better": {"acc": True},
            "scores": {name: {"acc (none)": figure} for name in ("teacher", "student")},
        }
    }
    return results


def with_any_names() -> Results:
    """Classifiers on domains whose names are long, alike, and written otherwise."""
    results = class_results()
    names = ["news " + 40 * "and more news ", "a b", "a-b", "A/b", "Ω" * 60, "新聞" * 40, "..", "?"]
    for found in results["models"].values():
        some = found["domains"]["validation"]
        found["domains"] = {"validation": some, **dict.fromkeys(names, some)}
    results["gap_recovered"] = dict.fromkeys(["validation", *names], 0.5)
    return results


def masked_results() -> Results:
    results = sample_results()
    results["task"] = "masked-lm"
    return results


@pytest.mark.parametrize(
    "make",
    [sample_results, masked_results, class_results, with_harness, with_any_names],
    ids=["causal", "masked", "classification", "lm-eval", "any names"],
)
def test_every_panel_of_a_report_is_in_its_run(
    make: Callable[[], Results], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "output"
    shown = panels(load_report_data(sample_run(output, make())))
    tables = {panel.key for panel in shown if panel.kind == "table"}
    assert "quality/speed" in tables
    assert ("quality/lm-eval" in tables) == (make is with_harness)
    tree = tiny_config(tmp_path / "corpus", str(output), name=64 * "n")
    gallery = open_wandb_run(
        RunConfig.model_validate({**tree, "tracking": OFFLINE}), "report", open_store(str(output))
    )
    gallery.show(shown)
    gallery.finish()
    (log,) = offline_runs(output)
    assert_all_there(log, shown)
    assert not [line for line in said(caplog) if "failed" in line]


def test_a_panel_that_fails_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = Panel("quality", "torn", "bars", ("domain", "share"), [["validation"]])
    mixed = Panel("quality", "m" * 500, "table", ("a",), [["text"], [1.0]])
    tree = tiny_config(tmp_path / "corpus", str(tmp_path), name="night")
    config = RunConfig.model_validate({**tree, "tracking": OFFLINE})
    gallery = open_wandb_run(config, "report", open_store(str(tmp_path)))
    gallery.show([PANELS[0], torn, mixed, *PANELS[1:]])
    gallery.finish()
    (log,) = offline_runs(tmp_path)
    assert_all_there(log, PANELS)
    failures = [line for line in said(caplog) if "failed" in line]
    assert [line.partition(" failed")[0] for line in failures] == [
        "W&B: show quality/torn",
        f"W&B: show {mixed.key}",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("validation-2.1_x", "validation-2.1_x"),
        ("Speed on CPU, 1 thread: (x)", "Speed-on-CPU-1-thread-x"),
        ("Prüfung", "Prüfung"),
        ("/ ?", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_names_that_fit(name: str, expected: str) -> None:
    assert fit(name, 30) == expected


def test_long_names_are_cut_and_stay_distinct() -> None:
    for letter in ("a", "ü", "新", "😀x"):
        names = {fit(letter * count, 80) for count in range(200, 230)}
        assert len(names) == 30
        assert all(60 < len(name.encode()) <= 80 for name in names) or letter == "😀x"
    assert len(Panel("s" * 300, "n" * 300, "table", (), []).key) <= 80


def test_artifacts_have_names_that_wandb_allows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path / "out"))
    tracker = start(store, OFFLINE)
    for name in ("ü/x:y", "n" * 300):
        tracker.log_reference(name, "cache", "s3://bucket/manifest.json", {})
    tracker.finish()
    (log,) = offline_runs(tmp_path / "out")
    names = [each["name"] for each in records_of(log, "artifact")]
    assert names[0] == "x-y"
    assert len(names[1]) == 128
    assert not [line for line in said(caplog) if "failed" in line]


def test_a_view_is_saved_where_the_run_is_online(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # There is no server to save it with: what asks it is replaced, first by one that fails.
    online = SimpleNamespace(
        offline=False, entity="team", project="p", group="night", id="abc", log=lambda row: None
    )
    asked: list[Any] = []

    def save(*arguments: Any) -> str:
        asked.append(arguments)
        if len(asked) == 1:
            raise ConnectionError("no route to host")
        return "https://wandb.example/team/p?nw=1"

    monkeypatch.setattr(workspace, "save_view", save)
    for _ in range(2):
        WandbRun(online).show(PANELS[1:2])
    assert asked == [("team", "p", "night", "abc", PANELS[1:2])] * 2
    assert said(caplog) == [
        "W&B: save a view failed, the run continues without it: ConnectionError: no route to host",
        "W&B: the view of its charts and tables: https://wandb.example/team/p?nw=1",
    ]


def test_a_table_goes_to_wandb(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    tracker = start(store, OFFLINE)
    tracker.log_table("texts", ["prompt", "student"], [["a", "b"]])
    tracker.finish()
    (log,) = offline_runs(tmp_path / "out")
    (table,) = (log.parent / "files" / "media" / "table").glob("texts*.table.json")
    assert json.loads(table.read_text())["data"] == [["a", "b"]]


def test_starts_of_one_stage_are_one_run_to_wandb(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "a"))
    for attempt in (0, 1):
        tracker = start(store, OFFLINE, start_step=attempt, attempt=attempt)
        tracker.log(attempt + 1, 1, {"loss": 1.0})
        tracker.finish(exit_code=attempt)
    start(open_store(str(tmp_path / "b")), OFFLINE).finish()
    (other,) = offline_runs(tmp_path / "b")
    mine = {log.name for log in offline_runs(tmp_path / "a")}
    assert len(mine) == 1
    assert other.name not in mine
    assert steps_of(store) == [(1, 1.0), (2, 1.0)]
    last = offline_runs(tmp_path / "a")[-1]
    assert records_of(last, "run")[0]["resume"] is True
    assert [each["exit_code"] for each in records_of(last, "exit")] == [1]


def test_wandb_out_of_reach_becomes_an_offline_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("WANDB_API_KEY", "hunter2" + "0" * 33)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(wandb_run, "_INIT_SECONDS", 3.0)
    store = open_store(str(tmp_path))
    tracker = start(store, TrackingConfig())
    tracker.log(1, 1, {"loss": 1.0})
    tracker.finish()
    printed = capfd.readouterr()
    assert said(caplog)[0].startswith("W&B: online failed: ")
    assert "W&B: offline." in caplog.text
    assert "hunter2" not in printed.out + printed.err + caplog.text
    (log,) = offline_runs(tmp_path)
    assert [row["item"]["loss"] for row in records_of(log, "history")] == [1]
    assert steps_of(store) == [(1, 1.0)]


def test_settings_that_wandb_refuses_cost_only_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "no url")
    store = open_store(str(tmp_path))
    tracker = start(store, TrackingConfig())
    tracker.log(1, 1, {"loss": 1.0})
    tracker.finish()
    assert "W&B: its settings cannot be used: " in caplog.text
    assert steps_of(store) == [(1, 1.0)]


BROKEN_SERVICE = """
import os, signal, sys
from pathlib import Path
from kdscale.config.run import TrackingConfig
from kdscale.store import open_store
from kdscale.tracking.trackers import open_tracker

store = open_store(sys.argv[1])
tracker = open_tracker(
    TrackingConfig(wandb="offline"), run="r", stage="distill", store=store, resolved={}
)
tracker.log(1, 1, {"loss": 1.0})
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
for child in children:
    os.kill(int(child), signal.SIGKILL)
    os.waitpid(int(child), 0)
print(len(children), "killed", flush=True)
for step in range(2, 30):
    tracker.log(step, step, {"loss": 1.0})
tracker.summary({"a": 1})
tracker.log_reference("cache", "cache", "s3://b/k", {})
tracker.finish()
print("finished", flush=True)
"""


@pytest.mark.fault
def test_training_outlives_a_killed_wandb(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BROKEN_SERVICE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "1 killed\n" in result.stdout
    assert result.stdout.endswith("finished\n")
    assert len(steps_of(open_store(str(tmp_path)))) == 29


@pytest.fixture
def no_settings() -> Iterator[None]:
    """None of W&B's: a process keeps the settings, and the key, that it found first."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(
    ("wanted", "environment", "netrc", "mode"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "0" * 40}, "", "online"),
        ("auto", {}, "machine api.wandb.ai login user password key", "online"),
        ("auto", {}, "machine elsewhere.example login user password key", "offline"),
        (
            "auto",
            {"WANDB_BASE_URL": "https://wandb.my.example"},
            "machine wandb.my.example login user password key",
            "online",
        ),
        ("auto", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "", "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "", "disabled"),
        ("online", {}, "", "offline"),
        ("online", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "", "online"),
        ("offline", {"WANDB_API_KEY": "0" * 40}, "", "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "", "disabled"),
    ],
)
def test_where_wandb_goes(
    wanted: Any,
    environment: dict[str, str],
    netrc: str,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_run._mode(wanted) == mode


@pytest.mark.usefixtures("no_settings")
def test_a_netrc_that_is_no_text_names_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_bytes("# Prüfung\nmachine api.wandb.ai".encode("latin-1"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_run._mode("auto") == "offline"


def test_wandb_is_not_imported_where_it_is_off(tmp_path: Path) -> None:
    code = (
        "import sys; from kdscale.config.run import TrackingConfig as C;"
        "from kdscale.tracking.trackers import open_tracker; from kdscale.store import open_store;"
        "t = open_tracker(C(wandb='disabled'), run='r', stage='s', store=open_store(sys.argv[1]),"
        " resolved={}); t.log(1, 1, {}); t.summary({'a': 1}); t.finish();"
        "sys.exit('wandb' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
