"""Preflight: its notes, models and data out of reach, and nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.cli import main
from kdscale.config import RunConfig, dump_config
from kdscale.errors import KdscaleError
from kdscale.models.tasks import TaskSpec
from kdscale.preflight import PreflightOptions, preflight
from kdscale.preflight.caches import check_caches, describe_difference
from kdscale.preflight.context import KnownData
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.checks import check_run
from kdscale.store import open_store
from tests.unit.preflight.runs import (
    BERT,
    LLAMA,
    SMALL,
    run_config,
    write_cache,
    write_documents,
    write_teacher,
)

ELSEWHERE = PreflightOptions(runs_elsewhere=True)
TRAINED: dict[str, Any] = {
    "teacher": {
        "model": {"architecture": "llama", "options": LLAMA},
        "training": {"steps": 1, "global_batch_size": 2},
    },
    "data__tokenizer": {"kind": "train", "vocab_size": 300},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents and a teacher."""
    folder = tmp_path_factory.mktemp("preflight")
    write_documents(folder / "text")
    write_teacher(folder / "teacher")
    write_teacher(folder / "bert", "bert", BERT, TaskSpec("masked-lm"))
    write_teacher(folder / "small", options=SMALL)
    return folder


@pytest.fixture
def config(place: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Return a maker of good configs but for the changes given."""

    def make(**changes: Any) -> RunConfig:
        tree = run_config(place, **{"output": str(tmp_path / "output"), **changes})
        return RunConfig.model_validate(tree)

    return make


def notes(config: RunConfig, options: PreflightOptions | None = None) -> str:
    found = preflight(config) if options is None else preflight(config, options=options)
    return "\n".join(found.notes)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0), *capsys.readouterr()


NARROW = {"hidden_size": 16}
ON_LAYERS = {"hidden": {"layers": [[1, 3]]}, "attention": {}}
MASKED: dict[str, Any] = {
    "task": "masked-lm",
    "teacher__load": "{}/bert",
    "distill__student": {"teacher_layers": [0, 3], "width": {"intermediate_size": 24}},
}
CLASSIFIED: dict[str, Any] = {
    "task": "sequence-classification",
    "teacher": {"load": "{}/bert", "training": {"steps": 1, "global_batch_size": 2}},
    "data__labels": {},
    "cache": {"codec": {"kind": "full"}},
    "distill__student": {"teacher_layers": {"kind": "even", "count": 2}},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        TRAINED,
        {"distill__targets": "online", "distill__online": ON_LAYERS},
        {"distill__student": {"teacher_layers": [0, 3], "width": {"hidden_size": 16}}},
        {"teacher__training": {"steps": 1, "global_batch_size": 2, "zero": {"stage": 3}}},
        MASKED,
        CLASSIFIED,
        {"distill__student": {"load": "{}/small"}},
        {"distill__student": {"load": "{}/teacher", "layers": [0, 3], "width": NARROW}},
        {**MASKED, "distill__student": {"load": "{}/bert", "layers": [0, 2]}},
        {**CLASSIFIED, "distill__student": {"load": "{}/bert"}},
    ],
)
def test_a_good_run_goes_through_and_leaves_nothing_behind(
    changes: dict[str, Any],
    config: Callable[..., RunConfig],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    filled = json.loads(json.dumps(changes).replace("{}/", f"{place}/"))
    found = check_run(config(**filled))
    assert found.notes == []
    assert "the student, built without weights" in found.checked
    assert "the first documents of each source" in found.checked
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_was_checked(
    config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        dump_config(
            config(cache__sequences=32, distill__training={"steps": 1, "global_batch_size": 8})
        )
    )
    code, out, _ = run(capsys, "run", str(path), "--dry-run")
    assert code == 0
    assert "checked: the teacher, built without weights" in out
    assert "note: The student reads 8 rows (1 steps of 8), 25% of the" in out
    assert out.endswith("Nothing was started.\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]
    _, _, said = run(capsys, "plan", str(path))
    assert "note: The student reads 8 rows (1 steps of 8), 25% of the" in said
    _, _, said = run(capsys, "submit", str(path), "--dry-run")
    assert "note: The student reads 8 rows (1 steps of 8), 25% of the" in said


def test_only_what_the_chosen_stages_need_is_looked_at(config: Callable[..., RunConfig]) -> None:
    bad = config(distill__student__model={"architecture": "lama", "options": {}})
    for stages in (
        ["report"],
        ["evaluate", "report"],
        ["prepare"],
        ["prepare", "teacher", "cache"],
    ):
        preflight(bad, stages)
    with pytest.raises(KdscaleError, match="no architecture 'lama'"):
        preflight(bad, ["distill"])
    mute = config(data__train__text_field="body")
    preflight(mute, ["distill", "evaluate", "report"])
    with pytest.raises(KdscaleError, match="no field 'body'"):
        preflight(mute, ["prepare"])


def test_a_saved_data_set_tells_its_columns(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    source = {"kind": "huggingface", "path": str(tmp_path / "saved")}
    preflight(config(data__train=source), ["prepare"])
    with pytest.raises(KdscaleError, match="no field 'body', only label, text"):
        preflight(config(data__train={**source, "text_field": "body"}), ["prepare"])
    with pytest.raises(KdscaleError, match="no split 'test', only train"):
        preflight(config(data__train={**source, "split": "test"}), ["prepare"])


# What is said of a run, by what is changed in a good one.
NOTES: dict[str, tuple[dict[str, Any], str]] = {
    "large student": (
        {
            "distill__student__model": {
                "architecture": "llama",
                "options": {**LLAMA, "hidden_size": 64},
            }
        },
        "more than its teacher's",
    ),
    "vocabulary": (
        {
            "distill__student__model": {
                "architecture": "llama",
                "options": {**SMALL, "vocab_size": 320},
            }
        },
        "distill.student.model.options.vocab_size 320 is no choice of the model",
    ),
    "unread": (
        {"cache__sequences": 64, "distill__training": {"steps": 2, "global_batch_size": 8}},
        "reads 16 rows (2 steps of 8), ",
    ),
    "long rows": (
        {
            "data__seq_len": 600,
            "distill__student__model": {
                "architecture": "llama",
                "options": {**SMALL, "max_position_embeddings": 600},
            },
        },
        "Sequences of 600 tokens are longer than the 512 positions that the teacher (llama)",
    ),
    "large batch": (
        {"cache__sequences": None, "distill__training": {"steps": 1, "global_batch_size": 900}},
        "it will have some of them more than once",
    ),
    "revision": (
        {"teacher__revision": "main"},
        "teacher.revision is ignored: teacher.load is a folder",
    ),
    "tokenizer": (
        {"data__tokenizer": {"kind": "teacher", "vocab_size": 900}},
        "data.tokenizer.vocab_size is ignored: the tokenizer is the teacher's own",
    ),
    "decay": (
        {"distill__training__optimiser": {"decay_share": 0.5}},
        "distill.training.optimiser.decay_share is ignored: the schedule is cosine",
    ),
    "dtype": (
        {
            "distill__student__model": {
                "architecture": "llama",
                "options": {**SMALL, "dtype": "bfloat16"},
            }
        },
        "distill.student.model.options.dtype is ignored: workers.gpus decides it",
    ),
    "curriculum": (
        {"distill__curriculum": {"pacing": "linear", "warmup_share": 0}},
        "distill.curriculum.pacing is ignored: warmup_share 0 turns the curriculum off",
    ),
    "kernel": (
        {"teacher__attention": "flex_attention"},
        "teacher.attention is ignored: it is a kernel for GPUs, and no worker has one",
    ),
    "kernel beside weights": (
        {
            "distill__student__attention": "sdpa",
            "distill__targets": "online",
            "distill__online": {"attention": {}},
        },
        "distill.student.attention is ignored: distill.online.attention needs the attention",
    ),
    "masking": (
        {"data__masking": {"share": 0.3}},
        "data.masking is ignored: the task is causal-lm",
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_is_no_mistake_is_noted(name: str, config: Callable[..., RunConfig]) -> None:
    changes, words = NOTES[name]
    assert words in notes(config(**changes))


def test_a_reused_cache_makes_its_settings_idle(
    config: Callable[..., RunConfig], place: Path, tmp_path: Path
) -> None:
    write_cache(tmp_path / "cache", run_config(place))
    reuses = {"cache": {"reuse": str(tmp_path / "cache"), "codec": {"kind": "full"}}}
    assert "cache.codec is ignored: nothing is captured" in notes(config(**reuses))


# What is not to be seen from here, by the field that names it.
UNSEEN: dict[str, dict[str, Any]] = {
    "teacher.load": {"teacher__load": "/on-the-cluster/teacher"},
    "data.train.path": {"data__train__path": "/on-the-cluster/text/*.jsonl"},
    "cache.reuse": {"cache__reuse": "/on-the-cluster/cache"},
    "evaluate.models.old": {"evaluate__models": {"old": "/on-the-cluster/old"}},
}


@pytest.mark.parametrize("field", UNSEEN)
def test_what_only_the_cluster_has_is_noted_by_a_submission_and_refused_by_a_run(
    field: str, config: Callable[..., RunConfig]
) -> None:
    changed = config(**UNSEEN[field])
    assert f"{field} /on-the-cluster/" in notes(changed, ELSEWHERE)
    with pytest.raises(KdscaleError, match="/on-the-cluster"):
        check_run(changed)
    # And all that does not depend on it is still looked at.
    bad = {"distill__student__model": {"architecture": "lama", "options": {}}}
    with pytest.raises(KdscaleError, match="no architecture 'lama'"):
        preflight(config(**UNSEEN[field], **bad), options=ELSEWHERE)


def test_a_submission_leaves_to_the_cluster_what_only_the_cluster_sees(
    config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config(teacher__load="/absent/teacher")))
    code, _, err = run(capsys, "run", str(path), "--dry-run")
    assert (code, "'/absent/teacher' does not exist" in err) == (2, True)
    code, _, err = run(capsys, "submit", str(path), "--dry-run")
    assert (code, "teacher.load /absent/teacher cannot be seen from here" in err) == (0, True)


def test_every_student_of_a_graph_is_looked_at(
    config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, good, bad = (tmp_path / f"{name}.yaml" for name in ("run", "good", "bad"))
    path.write_text(dump_config(config()))
    good.write_text(yaml.safe_dump({"distill": {"training": {"steps": 9}}}))
    bad.write_text(yaml.safe_dump({"distill": {"student": {"model": {"architecture": "lama"}}}}))
    command = ("submit", str(path), "--dry-run", "--student", str(good))
    assert run(capsys, *command)[0] == 0
    code, out, err = run(capsys, *command, "--student", str(bad))
    assert (code, out) == (2, "")
    assert "no architecture 'lama'" in err


def test_a_plan_with_stand_ins_looks_at_the_student(
    config: Callable[..., RunConfig],
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    away = {"teacher__load": "s3://nowhere/teacher", "data__train__path": "s3://nowhere/text"}
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config(**away)))
    stand_ins = ("--tokens", "1e6", "--teacher", str(place / "teacher"))
    assert run(capsys, "plan", str(path), *stand_ins)[0] == 0
    layers = {"distill__student": {"teacher_layers": [0, 9]}}
    path.write_text(dump_config(config(**away, **layers)))
    code, _, err = run(capsys, "plan", str(path), *stand_ins)
    assert (code, "teacher_layers [9]" in err) == (2, True)


def test_the_fields_of_a_base_that_differ_are_named(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    base = config(output=str(tmp_path / "base"), data__seq_len=128)
    open_store(base.output).put("config.resolved.yaml", dump_config(base).encode())
    with pytest.raises(KdscaleError, match="has not completed its stage 'prepare'") as caught:
        check_run(config(base=base.output))
    assert "data.seq_len: the base has 128, this run 64" in caught.value.problem


def test_a_trained_tokenizer_is_compared_once_it_is_there(
    config: Callable[..., RunConfig], place: Path, tmp_path: Path
) -> None:
    """Before that nobody knows what it will be."""
    write_cache(tmp_path / "cache", run_config(place))
    reuses = config(**{**TRAINED, "cache": {"reuse": str(tmp_path / "cache")}})
    preflight(reuses)
    own = KnownData(300, is_exact=True, tokenizer=place / "teacher", digest="ef" * 32)
    with pytest.raises(KdscaleError, match="tokenizer: "):
        check_caches(RunArtifacts(reuses), own)


def test_the_difference_between_tokenizers_is_their_first_id_or_setting(tmp_path: Path) -> None:
    here = {
        "added_tokens": [{"id": 0, "content": "<end>", "special": True}],
        "normalizer": None,
        "model": {"vocab": {"<end>": 0, "a": 1, "b": 2}, "merges": [["a", "b"]]},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(here))

    def difference(**changes: Any) -> str:
        return describe_difference(json.dumps({**here, **changes}).encode(), tmp_path)

    swapped = {"vocab": {"<end>": 0, "b": 1, "a": 2}, "merges": []}
    assert difference(model=swapped).startswith(
        "id 1 is 'b' in the cache and 'a' here, the first of 2"
    )
    more = {"vocab": {"<end>": 0, "a": 1, "b": 2, "c": 9}, "merges": []}
    assert "id 9 is 'c' in the cache and no token here" in difference(model=more)
    special = [{"id": 0, "content": "<end>", "special": False}]
    assert "special token '<end>' has other settings" in difference(added_tokens=special)
    merged = {**here["model"], "merges": []}
    assert "`model.merges` of tokenizer.json differs" in difference(model=merged)
    assert "`normalizer` of tokenizer.json is" in difference(normalizer={"type": "NFC"})


def test_a_student_out_of_reach_is_noted_where_the_run_starts_elsewhere(
    config: Callable[..., RunConfig],
) -> None:
    away = config(distill__student={"load": "/mnt/elsewhere/student"})
    assert "distill.student.load /mnt/elsewhere/student cannot be seen from here" in notes(
        away, ELSEWHERE
    )
    with pytest.raises(KdscaleError, match="folder '/mnt/elsewhere/student' does not exist"):
        preflight(away)


def test_a_revision_of_a_students_folder_is_ignored(
    config: Callable[..., RunConfig], place: Path
) -> None:
    loaded = config(distill__student={"load": f"{place}/small", "revision": "main"})
    assert notes(loaded) == (
        "distill.student.revision is ignored: distill.student.load is a folder."
    )
