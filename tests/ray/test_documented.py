"""Every kdscale command of README and docs/ is run by a test: here, or by the test named."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from kdscale.cli import main
from tests.pages import PAGES, commands
from tests.runs import FinishedRun, tiny_config, write_config
from tests.s3 import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LLAMA = "jobs/configs/llama-70b.yaml"
SHAPE = "jobs/configs/shapes/llama-3.1-70b"
QWEN = "jobs/configs/qwen3-235b.yaml"
MIXTURE = "jobs/configs/shapes/qwen3-235b-a22b"

HERE = {
    "kdscale data preview run.yaml": "Tokenizer",
    "kdscale data preview run.yaml --documents 50 --rows 3": "Row 2",
    "kdscale data tokenizer run.yaml small-bpe --vocab-size 8192": "ids in",
    "kdscale run run.yaml --only evaluate": "evaluate: done",
    "kdscale status s3://bucket/run": "evaluate",
    "kdscale status s3://bucket/run --watch": "evaluate",
    "kdscale status s3://bucket/run --json": '"stages"',
    "kdscale cache inspect runs/quickstart --sample 3": "varopt",
    "kdscale cache inspect URI --sample 3": "varopt",
    "kdscale cache stats URI": "rows",
    "kdscale cache audit runs/quickstart --budget 16": "varopt",
    "kdscale cache audit URI --budget 16": "varopt",
    "kdscale cache verify s3://bucket/run": "shards",
    "kdscale cache verify URI --sample 0.05": "shards",
    "kdscale cache repair URI": "",
    "kdscale cache gc URI --dry-run": "",
    "kdscale cache export URI OUT --format parquet": "rows",
    "kdscale report runs/quickstart": "student",
    "kdscale report runs/quickstart --format json": '"sections"',
    "kdscale report runs/a runs/b runs/c --to comparison.html": "Comparison",
    "kdscale export runs/quickstart --to exported": "hf",
    "kdscale export runs/quickstart --to exported --model teacher": "hf",
    "kdscale export runs/quickstart --to exported --push me/tiny --dry-run": "model.safetensors",
    "kdscale export s3://bucket/run --to exported --format hf --format onnx --format onnx-int8": (
        "onnx-int8"
    ),
    "kdscale lm-eval runs/quickstart": "heldout_cloze",
    "kdscale plan run.yaml": "student",
    "kdscale plan run.yaml --json": '"schema_version"',
    "kdscale plan run.yaml --mfu 0.45": "given, 45%",
    "kdscale plan run.yaml --hardware H100": "H100",
    "kdscale plan run.yaml --hardware A100-40": "A100",
    f"kdscale plan {LLAMA} --hardware H100 --tokens 100e9 --teacher {SHAPE}": "H100",
    f"kdscale plan {QWEN} --hardware H100 --tokens 100e9 --teacher {MIXTURE}": "Cheapest settings",
    "kdscale run run.yaml --dry-run": "Nothing was started.",
    "kdscale submit run.yaml --dry-run": "jobs/run.py",
    "kdscale submit CONFIG --backend kuberay --kube cluster/kuberay.yaml --dry-run": "RayJob",
}
"""Commands that need no cluster of jobs, with a text that each prints."""

LONG = (
    "kdscale run run.yaml --only evaluate",
    # Other commands do the same with the run, and test_export.py with a folder.
    "kdscale cache audit URI --budget 16",
    "kdscale export s3://bucket/run --to exported --format hf --format onnx --format onnx-int8",
)

SUBMITTED = "ray/test_submit.py"
ELSEWHERE = {
    "kdscale init run.yaml --example llama-70b": (
        "unit/start/test_start.py::test_examples_and_cluster_files_are_written"
    ),
    "kdscale init --cluster aws": (
        "unit/start/test_start.py::test_examples_and_cluster_files_are_written"
    ),
    "kdscale init run.yaml --teacher models/teacher --student models/student --data corpus.jsonl": (
        "ray/test_wheel.py::test_a_run_of_what_init_wrote"
    ),
    "kdscale doctor --output s3://bucket/run --cluster auto": (
        "ray/test_observability.py::test_doctor_finds_nothing_wrong"
    ),
    "kdscale doctor [--output URL] [--cluster auto|HEAD:6379] [--json]": (
        "unit/cli/test_doctor.py::test_json"
    ),
    "kdscale run run.yaml": "ray/test_pipeline.py::test_everything_a_run_promises_is_there",
    "kdscale run run.yaml --set distill.training.steps=500": (
        "ray/test_pipeline.py::test_another_config_does_not_replace_a_finished_student"
    ),
    "kdscale run run.yaml --set output=s3://bucket/run": (
        "ray/test_quickstart.py::test_the_quickstart_beats_its_baseline_and_gives_the_same_on_s3"
    ),
    "kdscale run jobs/configs/bbc-classify.yaml": (
        "ray/test_tasks.py::test_classes_are_on_both_sides_in_the_same_shares"
    ),
    "kdscale run jobs/configs/gemma3-smollm2.yaml": (
        "unit/distill/test_own_tokenizer.py::test_a_loaded_student_keeps_its_tokenizer_and_is_scored_before_training_too"
    ),
    "kdscale run jobs/configs/bbc-classify.yaml --set data.labels.share=0.1": (
        "ray/test_tasks.py::test_the_baseline_learns_from_labelled_rows_alone"
    ),
    "kdscale export runs/quickstart --to exported --format hf --format onnx-int8": (
        "ray/test_export.py::test_a_finished_runs_student_is_exported"
    ),
    "kdscale export runs/quickstart --to exported --push me/tiny": (
        "unit/export/test_push.py::test_a_folder_goes_to_a_repository_that_is_made_for_it"
    ),
    "kdscale lm-eval runs/quickstart --tasks piqa,arc_easy --limit 200": (
        "unit/evaluate/test_harness.py::test_teacher_student_and_baseline_are_scored_offline"
    ),
    "kdscale lm-eval runs/quickstart --tasks mine --include-path my_tasks": (
        "unit/evaluate/test_harness.py::test_a_users_task_and_another_folder"
    ),
    "kdscale lm-eval runs/quickstart --model smollm=/models/SmolLM2-135M": (
        "unit/evaluate/test_harness.py::test_a_users_task_and_another_folder"
    ),
    "kdscale cache import SOURCE OUT --teacher Qwen/Qwen3-32B --dry-run": (
        "unit/importing/test_columns.py::test_a_repeated_sequence_is_imported_once"
    ),
    "kdscale cache import SOURCE OUT --teacher Qwen/Qwen3-32B --seq-len 4096": (
        "unit/importing/test_columns.py::test_long_sequences_are_split_and_short_ones_share_rows"
    ),
    "kdscale plan run.yaml --calibrate": (
        "ray/test_plan.py::test_a_calibration_is_measured_kept_and_used"
    ),
    "kdscale plan run.yaml --tokens 100e9 --teacher FOLDER": (
        "ray/test_plan.py::test_a_calibration_with_the_teacher_at_hand_knows_its_bytes"
    ),
    "kdscale submit run.yaml --backend kuberay": (
        "unit/cli/test_submit.py::test_dry_run_for_kubernetes_prints_the_rayjob"
    ),
    "kdscale submit run.yaml --address http://head:8265": f"{SUBMITTED}::test_ctrl_c_detaches",
    "kdscale submit run.yaml --address http://head:8265 --follow": f"{SUBMITTED}::test_success",
    "kdscale submit CONFIG --address http://127.0.0.1:8265 --follow": f"{SUBMITTED}::test_success",
    "kdscale submit CONFIG --set output=s3://BUCKET/RUN --address http://127.0.0.1:8265 --follow": (
        f"{SUBMITTED}::test_a_stage_of_the_real_pipeline"
    ),
    "kdscale submit run.yaml --follow --timeout 2h": f"{SUBMITTED}::test_success",
    "kdscale submit run.yaml --student a.yaml --student b.yaml": (
        f"{SUBMITTED}::test_a_graph_and_its_repeated_submission"
    ),
    "kdscale submit run.yaml --student small.yaml --student tiny.yaml --name sweep": (
        f"{SUBMITTED}::test_a_graph_and_its_repeated_submission"
    ),
    "kdscale status JOB": f"{SUBMITTED}::test_success",
    "kdscale wait JOB": f"{SUBMITTED}::test_two_hundred_jobs_and_none_is_lost",
    "kdscale list": f"{SUBMITTED}::test_success",
    "kdscale logs JOB -f": f"{SUBMITTED}::test_since",
    "kdscale logs JOB -f --since 5m": f"{SUBMITTED}::test_since",
    "kdscale stop JOB": f"{SUBMITTED}::test_stop_winds_down",
    "kdscale stop JOB --grace 2m": f"{SUBMITTED}::test_stop_winds_down",
}
"""Commands that need a cluster, a real model, a network or minutes: the test that runs them."""


def documented() -> list[str]:
    """Return the commands of all pages, each once, without comments."""
    return list(dict.fromkeys(commands(*PAGES)))


@dataclass(frozen=True)
class Place:
    """Place where commands are run, with its stand-ins for the paths of the documentation."""

    stands_for: dict[str, str]
    new: Path

    def arguments(self, command: str) -> list[str]:
        """Return the arguments of a documented command."""
        return [self.stands_for.get(word, word) for word in command.split()[1:]]


@pytest.fixture(scope="module")
def place(
    finished_run: FinishedRun, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    """Make copies of the finished run for reports and comparisons."""
    folder = tmp_path_factory.mktemp("documented")
    runs = {name: folder / name for name in ("run", "second", "third")}
    for copy in runs.values():
        shutil.copytree(finished_run.output, copy)
    config = write_config(
        folder / "run.yaml", tiny_config(finished_run.corpus, str(finished_run.output))
    )
    train = {"kind": "text", "path": "s3://b/corpus"}
    in_bucket = write_config(
        folder / "bucket.yaml", tiny_config(finished_run.corpus, "s3://b/run", data__train=train)
    )
    (cache,) = (runs["run"] / "cache").iterdir()
    return Place(
        {
            "runs/quickstart": str(runs["run"]),
            "runs/a": str(runs["run"]),
            "runs/b": str(runs["second"]),
            "runs/c": str(runs["third"]),
            "s3://bucket/run": f"{s3_server.url}/documented",
            "run.yaml": str(config),
            "CONFIG": str(in_bucket),
            "URI": str(cache),
            "OUT": str(folder / "rows.parquet"),
            "small-bpe": str(folder / "small-bpe"),
            "comparison.html": str(folder / "comparison.html"),
            **{name: str(ROOT / name) for name in (LLAMA, SHAPE, "cluster/kuberay.yaml")},
        },
        folder,
    )


@pytest.fixture(scope="module")
def uploaded(finished_run: FinishedRun, s3_server: S3Server) -> None:
    """Copy the finished run to a bucket."""
    files = fsspec.filesystem(
        "s3",
        key=s3_server.env["AWS_ACCESS_KEY_ID"],
        secret=s3_server.env["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=s3_server.env["AWS_ENDPOINT_URL"],
    )
    files.put(str(finished_run.output), f"{s3_server.url}/documented", recursive=True)


def test_every_documented_command_is_run_by_a_test() -> None:
    assert set(documented()) == set(HERE) | set(ELSEWHERE)
    for test in ELSEWHERE.values():
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), test


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=pytest.mark.slow) if each in LONG else each for each in HERE],
)
def test_a_documented_command(
    command: str,
    place: Place,
    uploaded: None,
    s3_env: S3Server,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = place.arguments(command)
    if "exported" in arguments:
        arguments[arguments.index("exported")] = str(tmp_path / "exported")
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    printed = capfd.readouterr()
    assert code in (0, None), printed.err[-3000:]
    assert HERE[command] in printed.out + printed.err
