"""Speed and samples of whole models beside each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdscale.config.evaluate import SamplesConfig, SpeedConfig
from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import current_rank
from kdscale.evaluate import single_device, speed
from kdscale.evaluate.samples import choose_prompts, write_samples
from kdscale.evaluate.single_device import load_models, write_text
from kdscale.evaluate.speed import measure_speed
from kdscale.models.hf_folder import ModelReference, read_marker
from kdscale.run.finished_run import FinishedRun
from kdscale.store import open_store
from tests.unit.evaluate.finished import T, make_finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("run")
    make_finished_run(folder)
    return FinishedRun(open_store(str(folder / "output")))


@pytest.fixture(scope="module")
def references(run: FinishedRun) -> dict[str, ModelReference]:
    found = {name: read_marker(run.output.child(name)) for name in ("teacher", "student")}
    return {name: marker for name, marker in found.items() if marker is not None}


def data_of(run: FinishedRun) -> dict[str, Prepared]:
    return dict.fromkeys(("teacher", "student"), run.prepared())


def test_every_turn_measures_every_model(
    run: FinishedRun, references: dict[str, ModelReference]
) -> None:
    models = load_models(references, current_rank())
    config = SpeedConfig(turns=2, sequences=3, new_tokens=5)
    found = measure_speed(models, references, data_of(run), config, current_rank())
    assert (found["device"], found["dtype"]) == ("CPU", "float32")
    assert (found["rows"], found["seq_len"], found["turns"]) == (3, T, 2)
    for name in ("teacher", "student"):
        own = found["models"][name]
        assert own["bytes"] == (Path(run.model_folder(name)) / "model.safetensors").stat().st_size
        assert own["tokens_per_second"] > 0
        assert 0 < own["row_seconds"] <= own["row_seconds_p90"]
        assert 0 < own["text_seconds"] <= own["text_seconds_p90"]
    assert found["models"]["student"]["times_teacher"] > 0
    assert found["models"]["student"]["times_teacher_interval"] is None  # of two turns
    assert "times_teacher" not in found["models"]["teacher"]


def test_a_speed_has_an_interval_over_turns_that_compare(
    run: FinishedRun, references: dict[str, ModelReference], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = load_models(references, current_rank())
    config = SpeedConfig(turns=9, sequences=2, new_tokens=1, seconds=600)
    # A machine that gets slower from turn to turn, on which the student takes a third as long.
    order: list[str] = []

    def seconds(act: Any, device: torch.device) -> float:
        held = [cell.cell_contents for cell in act.__closure__]
        (name,) = [name for name, model in models.items() if any(model is each for each in held)]
        order.append(name)
        turn = len(order) // 2
        return (3.0 if name == "teacher" else 1.0) * (1 + turn) * (1 + 0.01 * (turn % 3))

    monkeypatch.setattr(speed, "_seconds", seconds)
    found = measure_speed(models, references, data_of(run), config, current_rank())
    assert (found["turns"], found["latency_turns"]) == (9, 5)
    student = found["models"]["student"]
    low, high = student["times_teacher_interval"] or (0, 0)
    assert low <= student["times_teacher"] <= high
    assert student["times_teacher"] == pytest.approx(3, rel=0.5)
    assert order[:8] == ["teacher", "student", "student", "teacher"] * 2


def test_turns_end_with_their_time(run: FinishedRun, references: dict[str, ModelReference]) -> None:
    models = load_models(references, current_rank())
    config = SpeedConfig(turns=50, sequences=1, new_tokens=1, seconds=1e-9)
    found = measure_speed(models, references, data_of(run), config, current_rank())
    assert found["turns"] == 1


def test_nothing_is_measured_where_no_model_has_room(run: FinishedRun) -> None:
    found = measure_speed({}, {}, {}, SpeedConfig(), current_rank())
    assert (found["turns"], found["latency_turns"], found["models"]) == (0, 0, {})


def test_the_largest_is_left_out_where_memory_is_short(
    references: dict[str, ModelReference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = references["student"].parameters
    monkeypatch.setattr(single_device, "_available_bytes", lambda worker: 4 * (student + 1))
    assert list(load_models(references, current_rank())) == ["student"]


def test_greedy_text_is_the_argmax_of_whole_forwards(
    run: FinishedRun, references: dict[str, ModelReference]
) -> None:
    prepared = run.prepared()
    model = load_models(references, current_rank())["student"]
    vocabulary = prepared.vocab_size
    ids = torch.randint(vocabulary, (3, 9), generator=torch.Generator().manual_seed(0))
    got = write_text(model, ids, 6, prepared.special_ids, vocabulary, whole=True)
    expected = ids
    for _ in range(6):
        with torch.no_grad():
            logits = model(expected).logits[:, -1, :vocabulary]
        # A text that is whole does not end.
        logits[:, prepared.special_ids["eos_token_id"]] = -torch.inf
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(got, expected[:, 9:])


def test_drawn_text_follows_its_seed_and_leaves_the_generator_alone(
    run: FinishedRun, references: dict[str, ModelReference]
) -> None:
    prepared = run.prepared()
    model = load_models(references, current_rank())["student"]
    ids = torch.full((2, 4), 7)

    def text(seed: int) -> list[list[int]]:
        options = {"temperature": 1.5, "seed": seed, "whole": True}
        return write_text(
            model, ids, 12, prepared.special_ids, prepared.vocab_size, **options
        ).tolist()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert text(1) == text(1)
    assert text(1) != text(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert max(map(max, text(3))) < prepared.vocab_size


def test_samples_are_of_documents_and_stand_beside_their_truth(
    run: FinishedRun, references: dict[str, ModelReference]
) -> None:
    models = load_models(references, current_rank())
    config = SamplesConfig(prompts=3, prompt_tokens=16, new_tokens=24)
    found = write_samples(models, data_of(run), config, current_rank(), seed=0)
    assert (found["domain"], found["temperature"]) == ("validation", None)
    assert len(found["texts"]) == 3
    corpus = "\n".join(
        path.read_text(encoding="utf-8")
        for path in Path(run.config.data.train.path or "").iterdir()
    )
    for text in found["texts"]:
        assert (text["prompt"] + text["truth"]).strip("\ufffd") in corpus
        assert set(text["models"]) == {"teacher", "student"}


def test_prompts_are_at_most_half_a_row(run: FinishedRun) -> None:
    table = run.prepared().split("validation")
    config = SamplesConfig(prompts=2, prompt_tokens=1000, new_tokens=1000)
    prompts, truths = choose_prompts(table, config)
    assert prompts.shape == (2, T // 2)
    assert [len(truth) for truth in truths] == [T - T // 2] * 2
    assert not np.array_equal(prompts[0], prompts[1])
