"""The whole plan: its JSON, its text, the hardware table, the text's size, the command."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kdscale.cli import main
from kdscale.config import RunConfig, load_config
from kdscale.config.cache import VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.plan.calibration import find, keep, user_file
from kdscale.plan.hardware import TABLE, find_hardware
from kdscale.plan.inputs import read_inputs
from kdscale.plan.plan import make_plan
from kdscale.plan.render import render
from kdscale.preflight.row_counts import corpus_bytes, count_tokens
from kdscale.store import open_store
from tests.unit.plan.settings import LLAMA, setting, tree
from tests.unit.plan.test_timing import MEASURED

ROOT = Path(__file__).parents[3]
LARGE = ROOT / "jobs/configs/llama-70b.yaml"
NUMBER = {"type": "number"}
MONEY = {"type": "object", "required": ["on_demand", "spot"]}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema_version", "stages", "total", "caches", "requests", "scaling"],
    "properties": {
        "schema_version": {"const": 2},
        "name": {"type": "string"},
        "hardware": {"type": "object", "required": ["name", "flops", "memory_gib", "source"]},
        "calibration": {"type": ["object", "null"]},
        "assumptions": {"type": "array", "items": {"type": "string"}},
        "tokens": {"type": "object", "required": ["rows", "captured", "vocab_size", "source"]},
        "models": {
            "type": "object",
            "required": ["teacher", "student"],
            "additionalProperties": {
                "type": "object",
                "required": ["parameters", "forward_flops_a_token", "attention_flops_a_token"],
            },
        },
        "stages": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    *("name", "workers", "positions", "flops", "seconds", "device_hours"),
                    *("device_hours_range", "money", "billion_tokens", "memory", "usable"),
                ],
                "properties": {
                    "seconds": {
                        "type": "object",
                        "required": [
                            *("start_up", "compute", "communication", "encoding", "store"),
                            *("validation", "total"),
                        ],
                        "additionalProperties": NUMBER,
                    },
                    "money": MONEY,
                    "device_hours_range": {"required": ["low", "high"]},
                    "billion_tokens": {"type": ["object", "null"]},
                    "memory": {"type": ["object", "null"]},
                },
            },
        },
        "total": {
            "type": "object",
            "required": ["device_hours", "device_hours_range", "money"],
        },
        "caches": {
            "type": "array",
            "items": {"required": ["codec", "in_memory_position", "stored_position", "stored"]},
        },
        "requests": {"required": ["puts", "heads", "lists", "gets", "written_bytes", "read_bytes"]},
        "store_money": {"required": ["requests", "month"]},
        "break_even": {"type": ["object", "null"]},
        "scaling": {"type": "array", "minItems": 5, "maxItems": 5},
        "advice": {
            "type": "array",
            "items": {
                "required": [
                    *("stage", "changes", "device_hours", "computing", "before", "memory")
                ],
            },
        },
        "baseline": {"type": ["object", "null"], "required": ["device_hours", "money"]},
        "idle": {
            "type": "array",
            "items": {"required": ["stage", "devices", "device_hours", "money"]},
        },
        "interruptions": {
            "type": "array",
            "items": {
                "required": ["stage", "machines", "expected", "seconds_each", "device_hours"]
            },
        },
        "remarks": {"type": "array", "items": {"required": ["kind", "text", "changes"]}},
        "lora": {
            "type": "array",
            "items": {"required": ["name", "trained", "memory", "step_seconds", "checkpoint"]},
        },
    },
}


@pytest.fixture(autouse=True)
def no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("hardware", ["H100", "cpu"])
def test_json_has_the_schema_that_programs_rely_on(hardware: str) -> None:
    found = make_plan(setting(hardware)).as_dict()
    jsonschema.validate(json.loads(json.dumps(found)), SCHEMA)
    assert [stage["name"] for stage in found["stages"]] == [
        *("prepare", "teacher", "cache", "distill", "evaluate")
    ]
    measured = make_plan(setting("cpu").with_measured(MEASURED)).as_dict()
    jsonschema.validate(json.loads(json.dumps(measured)), SCHEMA)
    assert measured["calibration"]["workers"] == 2


def test_adapters_stand_beside_the_training_of_all_weights() -> None:
    adapted = {"teacher_layers": [0, 1, 2], "lora": {"r": 2}}
    plan = make_plan(setting("H100", distill__student=adapted))
    found = json.loads(json.dumps(plan.as_dict()))
    jsonschema.validate(found, SCHEMA)
    lora, full = found["lora"]
    student = plan.inputs.student
    assert (lora["trained"], full["trained"]) == (student.trained, student.parameters)
    assert student.trained < student.parameters / 10
    for figure in ("memory", "step_seconds", "checkpoint"):
        assert lora[figure] < full[figure]
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["distill"].memory is not None
    assert lora["memory"] == by_name["distill"].memory.total
    assert (
        full["memory"]
        == make_plan(setting("H100", distill__student={"teacher_layers": [0, 1, 2]}))
        .stages[3]
        .memory.total
    )  # type: ignore[union-attr]
    text = render(plan)
    assert "Training the student" in text
    assert "all weights" in text
    assert "Training the student" not in render(make_plan(setting("H100")))


def test_totals_are_those_of_the_stages() -> None:
    plan = make_plan(setting("H100"))
    assert plan.device_hours == pytest.approx(sum(stage.device_hours for stage in plan.stages))
    assert plan.money.on_demand == pytest.approx(plan.device_hours * 6.88)
    for stage in plan.stages:
        hours = max(1, stage.workers) * stage.seconds.total / 3600
        assert stage.device_hours == pytest.approx(hours)


def test_text_names_every_figure_and_what_it_stands_on() -> None:
    text = render(make_plan(setting("H100")))
    for word in ("20,480 tokens as given", "40% of 989 TFLOP/s", "Memory of a rank, the GPU"):
        assert word in text
    for word in ("the host", "Cache, by codec", "Store:", "Break-even:", "1,024", "spot"):
        assert word in text
    assert "measured on cpu" in render(make_plan(setting("cpu").with_measured(MEASURED)))
    reused = render(make_plan(setting("H100", cache__reuse="s3://bucket/cache")))
    assert "the cache exists already" in reused


def test_the_example_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    """70 B parameters, 100 B tokens, 64 H100s: the figures that docs/plan.md derives by hand."""
    shape = str(ROOT / "jobs/configs/shapes/llama-3.1-70b")
    config = load_config(LARGE)
    found = read_inputs(config, find_hardware("H100"), tokens=100e9, teacher_shape=shape)
    plan = make_plan(found)
    # All parameters but the embedding and 161 norms, twice; attention over the whole row.
    multiplied = 70_553_706_496 - 128_256 * 8192 - 161 * 8192
    attention = 4 * 8192 * 80 * 4096
    assert found.teacher.forward_flops(4096) == 2 * multiplied + attention
    stages = {stage.name: stage for stage in plan.stages}
    rows = math.ceil(100e9 / 4096)
    units = math.ceil(math.ceil(rows / 768) / 64)
    compute = units * 768 * 4096 * found.teacher.forward_flops(4096) / (0.4 * 989e12)
    assert stages["cache"].seconds.compute == pytest.approx(compute, rel=1e-3)
    assert stages["cache"].device_hours == pytest.approx(10_735, rel=0.01)
    assert plan.caches[0].stored == pytest.approx(2.25e12, rel=0.01)
    assert stages["cache"].memory is not None
    parts = stages["cache"].memory.device
    assert parts["hidden states"] == 4 * 2 * 4 * 4096 * 8192
    assert parts["head"] == 2 * 128_256 * 8192
    assert parts["logits"] == 6 * 2**28


def test_the_mixture_of_the_docs_waits_for_its_weights() -> None:
    shape = str(ROOT / "jobs/configs/shapes/qwen3-235b-a22b")
    config = load_config(ROOT / "jobs/configs/qwen3-235b.yaml")
    found = read_inputs(config, find_hardware("H100"), tokens=100e9, teacher_shape=shape)
    plan = make_plan(found)
    stages = {stage.name: stage for stage in plan.stages}
    seconds = stages["cache"].seconds
    assert seconds.communication > 2 * seconds.compute
    (capture,) = [each for each in plan.advice if each.stage == "cache"]
    assert capture.before == pytest.approx(stages["cache"].device_hours)
    assert any(change.startswith("cache.capture.micro_batch_size=") for change in capture.changes)
    assert capture.device_hours < 0.6 * capture.before
    assert plan.break_even is not None
    # An online teacher waits just as long in the student's micro-batches.
    assert plan.break_even.passes == pytest.approx(1, abs=0.02)


def test_hardware_by_name_by_file_and_not_at_all(tmp_path: Path) -> None:
    assert find_hardware("h100") == find_hardware("H100")
    names = {"B200", "H200", "H100", "A100-80", "A100-40", "L40S", "A10G", "L4"}
    assert {row.name for row in TABLE} == names
    assert all(row.spot < row.on_demand for row in TABLE)
    own = find_hardware("H100").model_copy(update={"name": "ours", "on_demand": 2.0})
    path = tmp_path / "ours.yaml"
    path.write_text(yaml.safe_dump(own.model_dump()))
    assert find_hardware(str(path)) == own
    path.write_text("name: ours\nflops: -1\n")
    with pytest.raises(KdscaleError, match="describes no hardware"):
        find_hardware(str(path))
    with pytest.raises(KdscaleError, match="cannot be read"):
        find_hardware(str(tmp_path / "absent.yaml"))
    with pytest.raises(KdscaleError, match="no hardware 'B300'") as caught:
        find_hardware("B300")
    assert "A100-80" in caught.value.fix


def test_tokens_are_estimated_from_the_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("word " * 5000)
    source = {"kind": "text", "path": str(folder)}
    config = RunConfig.model_validate(
        tree(data__train=source, data__validation_share=0.25, output=str(tmp_path / "run"))
    )
    assert corpus_bytes(config.data.train) == 100_000
    found = count_tokens(config, 2048)
    assert found.rows == round(75_000 / (0.28 * 11) / 32)
    assert found.corpus_bytes == 100_000
    # Of a mixture what the source with too little text allows.
    mixed = [{**source, "weight": 3}, {**source, "path": str(folder / "0.txt")}]
    assert count_tokens(
        RunConfig.model_validate(tree(data__train=mixed, output=str(tmp_path / "run"))), 2048
    ).corpus_bytes == (25_000 * 4)
    given = count_tokens(config, 2048, 32 * 77)
    assert (given.rows, given.captured_rows, given.corpus_bytes) == (77, 77, None)
    fewer = config.model_copy(update={"cache": config.cache.model_copy(update={"sequences": 10})})
    assert count_tokens(fewer, 2048, 32 * 77).captured == 320


def test_a_corpus_that_is_missing_or_mute_asks_for_tokens(tmp_path: Path) -> None:
    missing = tree(data__train={"kind": "text", "path": str(tmp_path / "absent")})
    with pytest.raises(KdscaleError) as caught:
        count_tokens(RunConfig.model_validate(missing), 512)
    assert "--tokens N" in caught.value.fix
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    cut = tree(data__train={"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "limit": 5})
    with pytest.raises(KdscaleError, match="not known before it is read"):
        corpus_bytes(RunConfig.model_validate(cut).data.train)


def test_a_calibration_is_found_beside_the_output_and_in_the_users_cache(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "run"))
    assert find(output, "cpu") is None
    keep(MEASURED, output)
    assert find(output, "cpu") == MEASURED
    assert find(None, "cpu") == MEASURED
    assert find(output, "H100") is None
    # How a payload packs is of one teacher and text: other runs do not take it over.
    known = MEASURED.model_copy(update={"codec": VaroptCodec(), "stored_payload": 9.5})
    keep(known, output)
    assert find(output, "cpu") == known
    assert find(None, "cpu") == MEASURED
    # Another version's is measured again.
    user_file("cpu").write_text('{"version": 2}')
    assert find(None, "cpu") is None


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    return int(caught.value.code or 0)


def write(folder: Path, **changes: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree(output=str(folder / "run"), **changes)))
    return str(path)


def test_the_command_prints_tables_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert command(path, "--hardware", "A10G", "--tokens", "1e6") == 0
    assert "small on A10G" in capsys.readouterr().out
    assert command(path, "--tokens", "1e6", "--json", "--set", "name=other") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["hardware"]["name"]) == ("other", "cpu")
    assert not (tmp_path / "run").exists()


def test_a_given_share_of_the_peak_replaces_what_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    found = {}
    for mfu in (0.2, 0.4):
        options = ("--hardware", "A10G", "--tokens", "1e7", "--mfu", str(mfu), "--json")
        assert command(path, *options) == 0
        found[mfu] = json.loads(capsys.readouterr().out)
    slow, fast = ({s["name"]: s for s in found[mfu]["stages"]} for mfu in (0.2, 0.4))
    for stage in ("teacher", "cache", "distill"):
        twice = slow[stage]["seconds"]["compute"] / fast[stage]["seconds"]["compute"]
        assert twice == pytest.approx(2)
    assert any("given, 20%" in line for line in found[0.2]["assumptions"])
    assert command(path, "--mfu", "0.4", "--calibrate") == 2


def test_the_command_refuses_what_cannot_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, cache__capture={"micro_batch_size": 8192, "queue_batches": 4096})
    assert command(path, "--hardware", "L4", "--tokens", "1e9") == 2
    *_, problem, fix = capsys.readouterr().err.splitlines()
    assert problem.startswith("error: The stage 'cache' does not fit on L4: a rank needs")
    assert fix.startswith("fix: --set cache.capture.queue_batches=")


def test_other_hardware_than_the_workers_run_on_is_not_calibrated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    assert command(path, "--hardware", "H100", "--tokens", "1e6", "--calibrate") == 2
    assert "and not H100" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_student_that_loads_a_model_is_planned_by_its_config(tmp_path: Path) -> None:
    shape = {
        "model_type": "llama",
        "vocab_size": 500,
        **LLAMA,
        "architectures": ["LlamaForCausalLM"],
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    loaded = setting("H100", distill__student={"load": str(tmp_path)})
    own = setting("H100", distill__student={"load": str(tmp_path), "layers": [0, 2]})
    assert (loaded.student.layers, own.student.layers) == (3, 2)
    # Fewer embeddings than the tokenizer may have at most.
    assert loaded.student.vocabulary == 500
    assert loaded.evaluated_students == loaded.students + 1 == 3
    stages = {stage.name: stage for stage in make_plan(loaded).stages}
    # Teacher, student, baseline, and the student before training, over all evaluation sets.
    each = loaded.teacher.forward_flops(32) + 3 * loaded.student.forward_flops(32)
    positions = sum(loaded.tokens.evaluation_sequences) * 32
    assert stages["evaluate"].positions == 4 * positions
    assert stages["evaluate"].flops == positions * each
    with pytest.raises(KdscaleError, match="does not exist") as caught:
        setting("H100", distill__student={"load": "/mnt/elsewhere/student"})
    assert "--set distill.student.load=FOLDER" in caught.value.fix


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("large", [False, True])
def test_a_plan_fits_the_terminal(width: int, large: bool) -> None:
    shape = str(ROOT / "jobs/configs/shapes/llama-3.1-70b")
    inputs = setting("H100")
    if large:
        config = load_config(LARGE)
        inputs = read_inputs(config, find_hardware("H100"), tokens=100e9, teacher_shape=shape)
    text = render(make_plan(inputs), width)
    assert max(map(len, text.splitlines())) <= width
