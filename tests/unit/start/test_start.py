"""`kdscale init` for models and data that exist: what it writes is short and runs as it is."""

import json
from pathlib import Path

import pytest
import torch

from kdscale.cli import main
from kdscale.config import RunConfig, load_config
from kdscale.errors import KdscaleError
from kdscale.models.tasks import TaskSpec
from kdscale.plan.hardware import this_machine
from kdscale.preflight import preflight
from kdscale.start import Request, sizes, write
from tests.unit.preflight.runs import BERT, SMALL, write_documents, write_teacher

H100 = ("--hardware", "H100")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models and documents."""
    folder = tmp_path_factory.mktemp("start")
    write_teacher(folder / "models" / "teacher")
    write_teacher(folder / "models" / "student", options=SMALL)
    write_teacher(folder / "models" / "other", options=SMALL, words=("zeta", "quick", "theta"))
    write_documents(folder / "text", 200)
    lines = (folder / "text" / "a.jsonl").read_text()
    (folder / "corpus.jsonl").write_text(lines)
    (folder / "one.jsonl").write_text(lines.splitlines()[0])
    return folder


def init(place: Path, monkeypatch: pytest.MonkeyPatch, target: Path, *options: str) -> RunConfig:
    """Write a config and return it."""
    monkeypatch.chdir(place)
    assert run("init", str(target), "--data", "corpus.jsonl", *options) == 0
    assert len(target.read_text().splitlines()) < 40
    return load_config(target)


def test_a_config_of_two_models_and_lines_runs_as_it_is(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "run.yaml"
    models = ("--teacher", "models/teacher", "--student", "models/student")
    config = init(place, monkeypatch, target, *models, "--output", str(tmp_path / "out"))
    said = capsys.readouterr().err
    assert "Data: jsonl, text in 'text'. Task: causal-lm." in said
    assert "as `kdscale plan` estimates" in said
    assert (config.distill.student.load, config.distill.tokenizer) == ("models/student", "teacher")
    assert config.output == str(tmp_path / "out")
    # All rows are read, several times, as they are few.
    assert config.cache.sequences is None
    training = config.distill.training
    assert training.steps * training.global_batch_size > 200
    workers = config.distill.workers
    assert workers.count * workers.cpus <= this_machine().devices_per_node
    assert run("run", str(target), "--dry-run") == 0
    assert "Nothing was started." in capsys.readouterr().out


def test_a_student_with_another_tokenizer_keeps_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ("--teacher", "models/teacher", "--student", "models/other")
    config = init(place, monkeypatch, tmp_path / "run.yaml", *models)
    assert config.distill.tokenizer == "student"
    # It takes more tokens for the same text, and its sequences have room for it.
    assert config.student_seq_len > config.data.seq_len


def test_without_a_student_it_is_half_of_the_teacher(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = init(place, monkeypatch, tmp_path / "run.yaml", "--teacher", "models/teacher", *H100)
    layers = config.distill.student.teacher_layers
    assert layers is not None
    assert not isinstance(layers, list)
    assert (layers.kind, layers.count) == ("even", 2)
    # The fewest GPUs that hold it, unless they are given.
    assert (config.distill.workers.count, config.distill.workers.gpus) == (1, 1)
    more = init(
        place,
        monkeypatch,
        tmp_path / "more.yaml",
        "--teacher",
        "models/teacher",
        *H100,
        "--gpus",
        "4",
    )
    assert more.cache.capture.workers.count == more.evaluate.workers.count == 4


def test_a_run_too_long_takes_a_part_of_the_data(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sizes, "_MOST_SECONDS", {"cpu": 1.0, "gpu": 1.0})
    models = ("--teacher", "models/teacher", "--student", "models/student")
    config = init(place, monkeypatch, tmp_path / "run.yaml", *models)
    assert config.cache.sequences == 64
    assert "64 of about" in capsys.readouterr().err


def test_a_classifier(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TaskSpec("sequence-classification", ("a", "b"))
    write_teacher(tmp_path / "classifier", "bert", BERT, spec)
    config = init(
        place, monkeypatch, tmp_path / "run.yaml", "--teacher", str(tmp_path / "classifier")
    )
    assert config.task == "sequence-classification"
    assert config.data.labels is not None
    assert (config.data.labels.field, config.data.labels.classes) == ("label", ("a", "b"))
    assert config.cache.codec.kind == "full"
    assert config.teacher.training is None
    preflight(config)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "corpus.jsonl"), "--teacher is missing"),
        (("--teacher", "models/teacher"), "--data is missing"),
        (("--teacher", "./absent", "--data", "corpus.jsonl"), "The teacher --teacher './absent'"),
        (("--teacher", "models/teacher", "--data", "absent"), "no file to read in 'absent'"),
        (("--teacher", "models/teacher", "--data", "one.jsonl"), "'one.jsonl' holds one document"),
        (("--teacher", "models/teacher", "--data", "text", "--task", "lm"), "no task 'lm'"),
        (
            ("--teacher", "models/teacher", "--data", "text", "--gpus", "0", *H100),
            "--gpus 0 and --hardware H100 contradict",
        ),
        (
            ("--teacher", "models/teacher", "--data", "text", "--hardware", "H1000"),
            "no hardware 'H1000'",
        ),
        (("--example", "quikstart"), "did you mean quickstart?"),
        (("--cluster", "azure"), "Give one of aws, gcp, kuberay"),
        (("--full", "--example", "quickstart"), "give one"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    options: tuple[str, ...],
    words: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    target = tmp_path / "run.yaml"
    assert run("init", str(target), *options) == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not target.exists()


def test_models_that_no_machine_holds_are_refused(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = json.loads((place / "models" / "teacher" / "config.json").read_text())
    giant = tmp_path / "giant"
    write_teacher(giant)
    sizes_of_it = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 64}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": 128}
    (giant / "config.json").write_text(json.dumps(shape | sizes_of_it | heads))
    monkeypatch.chdir(place)
    options = ("--teacher", str(giant), "--data", "text", "--student", "models/student")
    assert run("init", str(tmp_path / "run.yaml"), *options, *H100, "--gpus", "2") == 2
    assert "do not fit on 2 H100. fix: Give more: --gpus" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("gpu", "row"), [("NVIDIA A100-SXM4-40GB", "A100-40"), ("NVIDIA L4", "L4")]
)
def test_without_options_it_is_for_the_gpu_that_is_here(
    gpu: str, row: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    request = Request(str(place / "models/teacher"), str(place / "corpus.jsonl"))
    assert write._hardware(request).name == row


def test_a_gpu_without_figures_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    request = Request(str(place / "models/teacher"), str(place / "corpus.jsonl"))
    with pytest.raises(KdscaleError, match="RTX 4090, is not in the table"):
        write._hardware(request)


def test_examples_and_cluster_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "--example", "llama-70b") == 0
    assert load_config("llama-70b.yaml").teacher.load
    assert run("init", "--cluster", "local") == 0
    assert (tmp_path / "local.sh").stat().st_mode & 0o100
