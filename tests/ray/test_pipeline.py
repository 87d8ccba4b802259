"""A whole run with real Ray workers, DeepSpeed and W&B files."""

import json
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import kdscale
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.reader import CacheReader
from kdscale.config import parse_config
from kdscale.distill.student_init import init_student
from kdscale.distributed.rank import current_rank
from kdscale.integrations.transformers import DistillationTrainer
from kdscale.run.status import run_status
from kdscale.store import open_store
from kdscale.train.batches import batch_digest
from kdscale.train.learning_rate import learning_rate
from kdscale.train.state import parameter_groups
from tests.runs import FinishedRun, read_metrics, run_kdscale, tiny_config, write_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200), pytest.mark.usefixtures("shared_ray")]


def cache_folder(run: FinishedRun) -> Path:
    (folder,) = (run.output / "cache").iterdir()
    return folder


def test_results_compare_teacher_student_and_baseline_on_every_domain(
    finished_run: FinishedRun,
) -> None:
    results = json.loads((finished_run.output / "results.json").read_text())
    assert results["schema_version"] == 2
    assert set(results["models"]) == {"teacher", "student", "baseline"}
    for model in results["models"].values():
        assert set(model["domains"]) == {"validation", "docs"}
        for scores in model["domains"].values():
            assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
            assert 0 < scores["bits_per_byte"] < 8
            assert scores["tokens"] > 500
    student, baseline, teacher = (
        results["models"][name]["domains"]["validation"]
        for name in ("student", "baseline", "teacher")
    )
    assert student["loss"] < baseline["loss"]
    for figure in ("kl_teacher_student", "kl_student_teacher"):
        assert 0 < student[figure] < baseline[figure]
    assert baseline["overlap_top10"] < student["overlap_top10"] < 1
    # Tokens before each target: data.overlap, where data.evaluation_context says nothing.
    assert results["context"] == 1
    gap = (baseline["loss"] - student["loss"]) / (baseline["loss"] - teacher["loss"])
    assert results["gap_recovered"]["validation"] == pytest.approx(gap)
    stages = {"prepare", "teacher", "cache", "distill", "evaluate"}
    assert stages <= set(results["seconds"])


def test_no_rank_holds_the_whole_teacher(finished_run: FinishedRun) -> None:
    pattern = r"rank (\d) of 2 .*teacher holds ([\d,]+) of ([\d,]+) parameters"
    found = re.findall(pattern, finished_run.log)
    assert {rank for rank, _, _ in found} == {"0", "1"}
    for _, held, total in found:
        held, total = (int(number.replace(",", "")) for number in (held, total))
        assert held <= 0.55 * total


def test_workers_go_on_with_the_next_stage(finished_run: FinishedRun) -> None:
    pattern = r"^(\w+): rank (\d) of 2 \(pid (\d+)\)"
    found = set(re.findall(pattern, finished_run.log, re.MULTILINE))
    assert {stage for stage, _, _ in found} >= {"teacher", "cache", "distill"}
    assert len({pid for _, _, pid in found}) == 2


def test_models_are_hugging_face_folders_that_generate(finished_run: FinishedRun) -> None:
    sizes = {}
    for name in ("teacher", "student", "baseline"):
        folder = finished_run.output / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("def ", return_tensors="pt")["input_ids"]
        assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]
        sizes[name] = sum(p.numel() for p in model.parameters())
        marker = json.loads((folder / "kdscale.json").read_text())
        assert marker["model"]["parameters"] == sizes[name]
    assert sizes["student"] == sizes["baseline"] < sizes["teacher"]
    assert not (finished_run.output / "checkpoints").exists() or not list(
        (finished_run.output / "checkpoints").rglob("*.pt")
    )


def test_student_and_baseline_start_equal_and_see_the_same_rows(finished_run: FinishedRun) -> None:
    student, baseline = (
        read_metrics((finished_run.output / f"metrics/{name}.jsonl").read_bytes())
        for name in ("distill", "baseline")
    )
    assert [line["step"] for line in student] == list(range(1, 121))
    for mine, theirs in zip(student, baseline, strict=True):
        for key in ("tokens", "lr", "curriculum/mean_difficulty", "curriculum/pool_size"):
            assert mine[key] == theirs[key]
    # The first loss is measured before the first update: same weights, same rows.
    assert student[0]["train/ce_loss"] == pytest.approx(baseline[0]["train/ce_loss"], rel=1e-6)
    assert student[1]["train/ce_loss"] != baseline[1]["train/ce_loss"]
    assert all("train/kl" in line for line in student)
    assert student[-1]["train/kl"] < student[0]["train/kl"]


def test_a_loop_of_ones_own_gives_the_losses_of_the_run(finished_run: FinishedRun) -> None:
    cache = kdscale.open_cache(str(finished_run.output))
    run = cache.run
    distill, seed = run.config.distill, run.config.seed
    training, teacher = distill.training, run.model("teacher")
    assert teacher is not None
    model = init_student(run.config, run.prepared(), teacher, current_rank()).build().train()
    groups = parameter_groups(model, training.optimiser.weight_decay)
    optimiser = torch.optim.AdamW(groups, betas=training.optimiser.betas)
    loader = cache.loader(
        training.global_batch_size,
        seed=seed,
        curriculum=distill.curriculum,
        steps=training.steps,
        global_batch_size=training.global_batch_size,
    )
    lines = read_metrics((finished_run.output / "metrics/distill.jsonl").read_bytes())
    for step, (batch, line) in enumerate(zip(islice(loader, 12), lines, strict=False)):
        assert batch_digest(batch.indices) == line["train/batch_digest"]
        inputs = kdscale.model_inputs(model, batch)
        hidden = model.model(**inputs).last_hidden_state
        parts = kdscale.loss_parts(hidden, model.lm_head, batch)
        assert parts.kl is not None
        found = [float(part) / batch.num_targets for part in (parts.cross_entropy, parts.kl)]
        assert found == pytest.approx([line["train/ce_loss"], line["train/kl"]], rel=1e-4), step
        (parts.objective / batch.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.optimiser.clip)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(training.optimiser, step, training.steps)
        optimiser.step()
        optimiser.zero_grad()


def test_a_trainers_evaluation_is_the_validation_of_the_run(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    cache = kdscale.open_cache(str(finished_run.output))
    student = AutoModelForCausalLM.from_pretrained(cache.run.model_folder("student"))
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = DistillationTrainer(student, args, cache, eval_dataset=cache.validation())
    lines = read_metrics((finished_run.output / "metrics/distill.jsonl").read_bytes())
    expected = lines[-1]["validation/loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_curriculum_grows_its_pool_from_easy_rows(finished_run: FinishedRun) -> None:
    lines = read_metrics((finished_run.output / "metrics/distill.jsonl").read_bytes())
    pools = [line["curriculum/pool_size"] for line in lines]
    assert pools[0] == 160
    assert pools[29] < 640
    assert pools[30:] == [640] * 90
    early = np.mean([line["curriculum/mean_difficulty"] for line in lines[:5]])
    late = np.mean([line["curriculum/mean_difficulty"] for line in lines[60:]])
    assert early < late


def test_cached_statistics_agree_with_the_teacher(finished_run: FinishedRun) -> None:
    reader = CacheReader(open_store(str(cache_folder(finished_run))))
    assert len(reader) == 640
    teacher = AutoModelForCausalLM.from_pretrained(finished_run.output / "teacher").eval()
    rows = reader.read(np.array([0, 333, 639]))
    for index in range(3):
        ids = torch.from_numpy(rows.rows.input_ids[index]).long()
        segments, mask = rows.rows.segment_ids[index], rows.rows.loss_mask[index]
        nll, entropy = [], []
        # Document by document, without any mask: the naive way.
        for segment in np.unique(segments[segments > 0]):
            where = np.flatnonzero(segments == segment)
            with torch.no_grad():
                log_probs = teacher(input_ids=ids[where][None]).logits[0].log_softmax(-1).double()
            for place, position in enumerate(where[:-1]):
                if mask[position]:
                    nll.append(-log_probs[place, ids[position + 1]].item())
                    entropy.append(-(log_probs[place].exp() * log_probs[place]).sum().item())
        assert len(nll) == mask.sum()
        assert rows.nll[index] == pytest.approx(np.mean(nll), rel=1e-4)
        assert rows.entropy[index] == pytest.approx(np.mean(entropy), rel=1e-4)


def test_cache_is_whole_and_verifies(finished_run: FinishedRun) -> None:
    report = verify(open_store(str(cache_folder(finished_run))))
    assert report.bad == []
    assert report.chunks == 80
    code, text = run_kdscale("cache", "verify", str(finished_run.output))
    assert code == 0, text
    code, text = run_kdscale("cache", "inspect", str(finished_run.output))
    assert code == 0, text
    assert "640" in text
    assert "varopt" in text
    code, text = run_kdscale("cache", "inspect", str(finished_run.output), "--sample", "2")
    assert code == 0, text
    assert text.count("context:") == 2


def test_everything_a_run_promises_is_there(finished_run: FinishedRun) -> None:
    output = finished_run.output
    resolved = parse_config((output / "config.resolved.yaml").read_text())
    assert resolved.distill.training.steps == 120
    record = json.loads((output / "run.json").read_text())
    assert {s["state"] for s in record["stages"].values()} == {"complete"}
    assert "torch" in record["versions"]
    for name in ("teacher", "cache", "distill", "baseline"):
        assert (output / f"metrics/{name}.jsonl").stat().st_size > 0
    report = (output / "report/index.html").read_text()
    assert "<svg" in report
    # Text of the corpus may hold addresses; the page asks for none of them.
    assert '="http' not in report.replace('"http://www.w3.org/2000/svg"', "")
    assert "gap" in (output / "report/summary.md").read_text().lower()
    assert "library_name: transformers" in (output / "student/README.md").read_text()
    runs = list((output / "wandb").glob("offline-run-*"))
    assert len(runs) == 6  # teacher, cache, student, baseline, evaluate, report
    assert "wandb leet" in finished_run.log
    assert "wandb sync" in finished_run.log


def test_running_again_skips_every_stage_without_starting_ray(finished_run: FinishedRun) -> None:
    before = (finished_run.output / "results.json").read_bytes()
    code, log = run_kdscale("run", str(finished_run.config))
    assert code == 0, log
    for stage in ("prepare", "teacher", "cache", "distill", "evaluate", "report"):
        assert f"{stage}: complete, skipped" in log
    assert "rank 0" not in log
    assert (finished_run.output / "results.json").read_bytes() == before


def test_another_config_does_not_replace_a_finished_student(finished_run: FinishedRun) -> None:
    code, log = run_kdscale("run", str(finished_run.config), "--set", "distill.training.steps=7")
    assert code == 2
    assert "holds a student of another config" in log
    assert "--overwrite" in log
    # What only says how to compute is not another config.
    code, log = run_kdscale(
        "run", str(finished_run.config), "--set", "distill.training.micro_batch_size=4"
    )
    assert code == 0, log


def test_a_missing_corpus_ends_before_a_worker_starts(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "nowhere", str(tmp_path / "output"))
    code, log = run_kdscale("run", str(write_config(tmp_path / "c.yaml", config)))
    assert code == 2
    assert "nowhere" in log
    assert "fix:" in log
    assert "rank 0" not in log


def test_a_cache_of_another_vocabulary_is_refused(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    """A second run with another tokenizer tries to use the first run's cache."""
    tree = yaml.safe_load(finished_run.config.read_text())
    tree["output"] = str(tmp_path / "output")
    tree["data"]["tokenizer"]["vocab_size"] = 400
    tree["cache"]["reuse"] = str(cache_folder(finished_run))
    config = write_config(tmp_path / "c.yaml", tree)
    code, log = run_kdscale("run", str(config))
    assert code == 2, log[-3000:]
    assert "vocab_size: the cache has 512, this run 400" in log
    assert "tokenizer: id " in log
    assert "teacher: started" not in log


def test_importing_the_program_stays_light() -> None:
    heavy = ["torch", "ray", "deepspeed", "transformers", "wandb", "pydantic", "numpy", "pyarrow"]
    code = f"import sys, kdscale.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_corrupted_cache_object_ends_in_an_error_that_names_it(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    shutil.copytree(finished_run.output, output)
    (cache,) = (output / "cache").iterdir()
    for path in (cache / "data").iterdir():
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
    code, log = run_kdscale("cache", "verify", str(output))
    assert code == 1
    assert int(re.search(r"(\d+) bad", log)[1]) >= 40
    changes = ("--set", f"output={output}", "--set", "distill.training.steps=9")
    # The machine still holds the blocks as they were, and would read those.
    changes += ("--set", f"distill.cache_folder={tmp_path}/chunks")
    code, log = run_kdscale("run", str(finished_run.config), *changes, "--overwrite")
    assert code == 2, log[-3000:]
    error = log[log.index("error:") :]
    assert re.search(r"data/0000\d\d-[0-9a-f]{16}\.arrow", error)
    assert "kdscale cache repair" in error
    # No restart mends it, so there was none.
    stages = {stage.name: stage for stage in run_status(open_store(str(output))).stages}
    assert stages["distill"].failed_groups <= 1
    # A finished model is replaced by a finished model only.
    assert (output / "student" / "kdscale.json").exists()
