"""The evaluate stage of a whole run: audit, disagreements, devices, against independent references.

References are brute force over all positions of the run, or what another command says.
"""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdscale.cache.fidelity.compare_codecs import Bench
from kdscale.cache.read.reader import CacheReader
from kdscale.config.evaluate import AuditConfig
from kdscale.distributed.rank import current_rank
from kdscale.evaluate.cache_audit import audit_cache
from kdscale.models.load import load_model
from kdscale.plan.expect import expect
from kdscale.plan.hardware import this_machine
from kdscale.plan.inputs import read_inputs
from kdscale.plan.plan import make_plan
from kdscale.run.expectation import write_expectation
from kdscale.types import SparseTargets
from tests.unit.distill.whole_run import InProcess, WholeRun, make_run

SAMPLES = {"prompts": 2, "prompt_tokens": 8, "new_tokens": 6}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """Return an evaluated run with a small audit and samples."""
    made = make_run(tmp_path_factory.mktemp("whole"), evaluate__samples=SAMPLES).distill()
    expected = expect(made.run.config)
    assert expected is not None
    write_expectation(made.run.output, expected)
    return made.evaluate()


def _log_probs(whole: WholeRun, name: str, ids: np.ndarray) -> torch.Tensor:
    """Return a model's log-probabilities of each document alone, [T, V]."""
    model = AutoModelForCausalLM.from_pretrained(whole.run.output.local_path(name)).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[None].astype(np.int64))).logits[0]
    return torch.log_softmax(logits[:, : whole.run.prepared.vocab_size].double(), -1)


def test_disagreements_are_the_greatest_kl_of_all_positions(whole: WholeRun) -> None:
    table = whole.run.prepared.split("validation")
    rows = table.take(np.arange(len(table)))
    greatest = []
    for sequence in range(len(table)):
        ids, segments = rows.input_ids[sequence], rows.segment_ids[sequence]
        kl = np.full(len(ids), -np.inf)
        said: dict[int, Any] = {}
        for segment in range(1, int(segments.max()) + 1):
            own = np.flatnonzero(segments == segment)
            teacher, student = (_log_probs(whole, n, ids[own]) for n in ("teacher", "student"))
            kl[own] = (teacher.exp() * (teacher - student)).sum(-1).numpy()
            said |= {int(p): (teacher[i], student[i], own[: i + 1]) for i, p in enumerate(own)}
        kl[~rows.loss_mask[sequence]] = -np.inf
        place = int(kl.argmax())
        greatest.append((float(kl[place]), sequence, place, *said[place]))
    greatest.sort(key=lambda each: -each[0])
    found = whole.results["disagreements"]
    assert len(found) == min(8, len(greatest))
    tokenizer = AutoTokenizer.from_pretrained(whole.run.output.local_path("student"))
    for each, (kl, sequence, place, teacher, student, before) in zip(found, greatest, strict=False):
        assert (each["domain"], each["sequence"], each["position"]) == (
            *("validation", sequence, place),
        )
        assert each["kl"] == pytest.approx(kl, rel=1e-4)
        ids = rows.input_ids[sequence]
        assert each["label"] == tokenizer.decode([int(ids[place + 1])])
        assert each["before"] == tokenizer.decode(ids[before].tolist())
        for name, log_probs in (("teacher", teacher), ("student", student)):
            top = log_probs.exp().topk(3)
            texts = [tokenizer.decode([int(number)]) for number in top.indices]
            assert [said["text"] for said in each[name]] == texts
            probabilities = [said["probability"] for said in each[name]]
            assert probabilities == pytest.approx(top.values.tolist(), rel=1e-4)


def test_the_audit_is_that_of_the_command_on_the_same_sequences(whole: WholeRun) -> None:
    ((store, _),) = whole.run.cache_stores
    reader, found = CacheReader(store), whole.results["cache_audit"]
    bench = Bench(store, reader, whole.run.teacher(), found["sequences"], 4)
    measured = bench.measure([whole.run.config.cache.codec], lambda done, total: None)
    ((_, expected),) = measured.items()
    for name in ("positions", "draws", "squared_bias", "variance", "kept_mass", "loss_bias"):
        assert found[name] == pytest.approx(getattr(expected.fidelity, name)), name
    assert found["mean_error"] == pytest.approx(expected.fidelity.widest.error)
    assert found["ids_in_common"] == 1.0
    assert found["seconds"] > 0


def test_covered_mass_is_the_teachers_probability_of_the_cached_ids(whole: WholeRun) -> None:
    ((store, _),) = whole.run.cache_stores
    reader = CacheReader(store)
    places = np.arange(len(reader))
    config, worker = AuditConfig(positions=len(reader) * reader.seq_len), current_rank()
    model = load_model(whole.run.output.local_path("teacher"), torch.float32).eval()
    # One draw: that of the capture itself, which the cache holds.
    one = config.model_copy(update={"draws": 1})
    found = audit_cache(store, model, whole.run.teacher().digest, one, worker)
    assert found is not None
    cached, mass, count = reader.read(places), 0.0, 0
    for row in range(len(cached)):
        ids, segments = cached.rows.input_ids[row], cached.rows.segment_ids[row]
        targets = reader.codec.decode(torch.from_numpy(cached.payload[row]))
        assert isinstance(targets, SparseTargets)
        for segment in range(1, int(segments.max()) + 1):
            own = np.flatnonzero(segments == segment)
            probs = _log_probs(whole, "teacher", ids[own]).exp()
            for place, p in zip(own, probs, strict=True):
                if cached.rows.loss_mask[row, place]:
                    mass += float(p[targets.ids[place].unique()].sum())
                    count += 1
    assert found["positions"] == count
    assert found["kept_mass"] == pytest.approx(mass / count, rel=1e-4)


def test_the_audit_draws_no_global_random_numbers(whole: WholeRun) -> None:
    ((store, _),) = whole.run.cache_stores
    model = load_model(whole.run.output.local_path("teacher"), torch.float32).eval()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    digest = whole.run.teacher().digest
    found = audit_cache(store, model, digest, AuditConfig(), current_rank())
    again = audit_cache(store, model, digest, AuditConfig(), current_rank())
    assert found is not None
    assert again == found | {"seconds": pytest.approx(found["seconds"], rel=100)}
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2] == random.getstate()
    assert audit_cache(store, model, "another", AuditConfig(), current_rank()) is None


def test_figures_are_the_same_without_audit_and_text(whole: WholeRun) -> None:
    before = whole.results
    config = whole.run.config
    plain = config.evaluate.model_copy(update={"audit": None, "samples": None})
    run = type(whole.run)(config.model_copy(update={"evaluate": plain}))
    found = WholeRun(run).evaluate().results
    assert json.dumps(found["models"]) == json.dumps(before["models"])
    assert found["gap_intervals"] == before["gap_intervals"]
    for name in ("cache_audit", "disagreements", "samples"):
        assert name in before
        assert name not in found
    whole.evaluate()


def test_ranks_together_find_the_same(whole: WholeRun) -> None:
    alone = whole.results
    together = WholeRun(whole.run, InProcess(2)).evaluate().results
    assert [(d["sequence"], d["position"]) for d in together["disagreements"]] == [
        (d["sequence"], d["position"]) for d in alone["disagreements"]
    ]
    for name in ("squared_bias", "variance", "kept_mass"):
        assert together["cache_audit"][name] == pytest.approx(alone["cache_audit"][name])


def test_the_plan_in_the_results_is_the_commands(whole: WholeRun) -> None:
    devices = whole.results["devices"]
    stages = ("teacher", "cache", "distill", "evaluate")
    assert devices["devices"] == {"prepare": 1, **dict.fromkeys(stages, 2)}
    plan = make_plan(read_inputs(whole.run.config, this_machine()))
    for stage in plan.stages:
        planned = devices["planned"][stage.name]
        assert planned["seconds"] == pytest.approx(stage.seconds.total)
        assert planned["device_hours"] == pytest.approx(stage.device_hours)
    assert devices["price_hour"] is None
    assert devices["watts"] == 5.0


def test_what_the_figures_are_of_is_in_the_results(whole: WholeRun) -> None:
    found = whole.results["evaluated"]
    assert found["teacher"] == whole.run.teacher().digest
    assert found["tokenizer"] == whole.run.prepared.manifest["tokenizer"]["sha256"]
    assert list(found["sets"]) == ["validation"]


def test_samples_are_greedy_and_drawn(whole: WholeRun) -> None:
    samples = whole.results["samples"]
    assert (samples["temperature"], samples["drawn_temperature"]) == (None, 1.0)
    for text in samples["texts"]:
        assert list(text["models"]) == list(text["drawn"]) == ["teacher", "student", "baseline"]
        assert text["drawn"]["student"] != text["models"]["student"]
