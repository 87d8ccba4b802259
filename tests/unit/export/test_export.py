"""Exports of small models of every task: what is written, how it loads, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from kdscale.config.lora import LoraConfig
from kdscale.errors import KdscaleError
from kdscale.export import Format, export, to_onnx
from kdscale.export.compare import compare, forward_of, shorter, validation_batches
from kdscale.export.export import check_target, file_sizes, render
from kdscale.export.source import find_source
from kdscale.export.to_onnx import check_packages, load_onnx
from kdscale.models.forward import compute_logits, row_tensors
from kdscale.models.hf_folder import publish
from kdscale.models.load import count_parameters, load_model
from kdscale.models.lora import Base, add_adapters, published_parameters
from kdscale.run.finished_run import FinishedRun
from kdscale.store import Store
from tests.unit.export.planted import CHUNK, LENGTH, plant_run, write_record

ALL = tuple(Format)
ENCODERS = [("sequence-classification", "bert"), ("masked-lm", "bert")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("run")
    return plant_run(str(folder / "output"), folder)


@pytest.fixture(scope="module")
def exported(run: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Export a causal language model in all formats."""
    folder = tmp_path_factory.mktemp("exports") / "all"
    return folder, export.export(find_source(run.url, "student"), folder, ALL)


@pytest.mark.parametrize("copies", [True, False])
def test_adapters_are_exported_merged_with_their_base(tmp_path: Path, copies: bool) -> None:
    run = plant_run(str(tmp_path / "output"), tmp_path)
    finished = FinishedRun(run)
    base = load_model(finished.model_folder("student"))
    base.save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    adapters = add_adapters(model, LoraConfig(r=4), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    place = Base(str(tmp_path / "base"), model=base if copies else None)
    publish(
        run,
        "student",
        export=lambda folder: adapters.save(folder, model, values, place),
        tokenizer=tmp_path / "tokenizer",
        fingerprint="1" * 16,
        parameters=published_parameters(model),
    )
    assert "model.safetensors" not in run.child("student").list()
    if copies:
        shutil.rmtree(tmp_path / "base")
    facts = export.export(find_source(run.url, "student"), tmp_path / "whole", ALL)
    assert facts["parameters"] == count_parameters(base)
    assert set(facts["formats"]) == set(ALL)
    ids = torch.arange(20)[None]
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        expected, found = (each.eval()(input_ids=ids).logits for each in (model, whole))
        before = base.eval()(input_ids=ids).logits
    assert (expected - before).abs().max() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_packed_rows_become_sequences_with_the_same_logits(run: Store) -> None:
    source = find_source(run.url, "student")
    model, prepared = load_model(source.weights).eval(), source.prepared
    table = prepared.split("validation")
    rows = row_tensors(table.take(np.arange(len(table))), torch.device("cpu"))
    assert (rows.segments > 1).any(), "no row holds two documents"
    batches = validation_batches(prepared, len(table), packed=True)
    with torch.no_grad():
        packed = compute_logits(model, rows.ids, rows.segments, prepared.outputs)[rows.known]
        cut = [compute_logits(model, b.ids, b.segments, prepared.outputs)[b.known] for b in batches]
    assert torch.allclose(packed, torch.cat(cut), atol=1e-5)
    assert torch.equal(rows.labels[rows.known], torch.cat([b.labels[b.known] for b in batches]))
    assert len({b.ids.shape for b in batches}) > 1
    half = shorter(batches[0])
    assert half.ids.shape == (1, batches[0].ids.shape[1] // 2)
    assert not half.known.any()


def test_an_export_is_a_folder_of_the_hub(
    run: Store, exported: tuple[Path, dict[str, Any]]
) -> None:
    folder, facts = exported
    files = file_sizes(folder)
    assert set(files) == {
        *("README.md", "config.json", "export.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("onnx/model.onnx", "onnx/model_int8.onnx"),
    }
    assert "distilled from" in (folder / "README.md").read_text()
    assert json.loads((folder / "export.json").read_text()) == facts
    here = (run.url, str(Path(to_onnx.__file__).parent))
    assert not [n for n in files for path in here if path.encode() in (folder / n).read_bytes()]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    own = load_model(Path(run.url) / "student").eval()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("words for words").input_ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, own(ids).logits)


def test_formats_are_compared_with_the_runs_own_model(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    folder, facts = exported
    hf, onnx, int8 = (facts["formats"][each] for each in ALL)
    assert hf["max_difference"] == 0
    assert 0 < onnx["max_difference"] <= onnx["tolerance"] <= 1e-3
    assert onnx["agreement_top1"] > 0.99
    assert onnx["max_difference"] < int8["max_difference"] < 2
    assert 0.8 < int8["agreement_top1"] <= 1
    assert 0 < int8["kl"] < 0.1
    assert int8["bytes"] == (folder / "onnx" / "model_int8.onnx").stat().st_size < onnx["bytes"]
    shapes = {tuple(shape) for shape in onnx["shapes"]}
    assert {batch for batch, _ in shapes} >= {1, 8}
    assert len({length for _, length in shapes}) > 1
    assert onnx["inputs"] == ["input_ids", "attention_mask"]
    assert onnx["opset"] >= 18
    text = render(facts)
    assert "| onnx-int8 |" in text
    assert f"ONNX opset {onnx['opset']}" in text


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_logits_as_they_are(
    run: Store, exported: tuple[Path, dict[str, Any]], side: str
) -> None:
    own = load_model(Path(run.url) / "student").eval()
    graph = load_onnx(exported[0] / "onnx" / "model.onnx")
    ids = torch.randint(2, 200, (3, 11), generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(3, 6, dtype=torch.int64)
    ones = torch.ones_like(ids)
    order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
    mask = torch.cat(order(ones, padding), dim=1)
    logits = graph(torch.cat(order(ids, padding), dim=1), mask)
    with torch.no_grad():
        expected = own(ids).logits
    assert expected.abs().max() > 1
    assert torch.allclose(logits[mask.bool()], expected.flatten(0, 1), atol=1e-4)


@pytest.mark.parametrize(("task", "architecture"), ENCODERS)
def test_encoders(task: Any, architecture: str, tmp_path: Path) -> None:
    run = plant_run(str(tmp_path / "run"), tmp_path, task, architecture)
    folder = tmp_path / "out"
    facts = export.export(find_source(run.url, "student"), folder, [Format.HF, Format.INT8])
    assert facts["task"] == task
    assert set(facts["formats"]) == {"hf", "onnx-int8"}
    assert facts["formats"]["hf"]["max_difference"] == 0
    assert facts["formats"]["onnx-int8"]["agreement_top1"] > 0.5
    # The float graph was made on the way, and is not left.
    assert [name for name in file_sizes(folder) if "onnx" in name] == ["onnx/model_int8.onnx"]


@pytest.mark.slow
def test_a_classifier_of_chunks_loads_with_its_code_and_without(tmp_path: Path) -> None:
    run = plant_run(
        str(tmp_path / "run"),
        tmp_path,
        "sequence-classification",
        "bert",
        long_documents="hierarchical",
        chunks={"length": CHUNK, "pooling": "attention"},
    )
    folder = tmp_path / "out"
    facts = export.export(find_source(run.url, "student"), folder, [Format.HF, Format.ONNX])
    assert facts["formats"]["hf"]["max_difference"] == 0
    assert (1, LENGTH // 2) in map(tuple, facts["formats"]["onnx"]["shapes"])
    ids = torch.arange(2, 2 + LENGTH)[None]
    mask = torch.ones_like(ids)
    mask[:, CHUNK + 2 :] = 0
    with torch.no_grad():
        own = load_model(folder).eval()(ids, mask).logits
        plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        one = plain(ids[:, :CHUNK], mask[:, :CHUNK]).logits
        assert torch.equal(one, load_model(folder).eval()(ids[:, :CHUNK], mask[:, :CHUNK]).logits)
    assert not torch.allclose(own, one, atol=1e-3)
    # A stranger's program: transformers alone, which gives the class's place to the folder's code.
    code = (
        "import sys, torch; from transformers import AutoModelForSequenceClassification as A;"
        f"m = A.from_pretrained(r'{folder}', trust_remote_code=True).eval();"
        f"i = torch.arange(2, {2 + LENGTH})[None]; k = torch.ones_like(i); k[:, {CHUNK + 2}:] = 0;"
        "print(m(i, k).logits.tolist()); print('kdscale' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logits, imported = done.stdout.splitlines()[-2:]
    assert torch.allclose(torch.tensor(json.loads(logits)), own, atol=1e-6)
    assert imported == "False"


def test_a_run_in_a_remote_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    run = plant_run(f"memory://{tmp_path.name}/run", tmp_path)
    facts = export.export(find_source(run.url, "student"), tmp_path / "out", [Format.HF], rows=2)
    assert facts["formats"]["hf"]["max_difference"] == 0


def test_half_precision_stays_and_has_the_same_bits(tmp_path: Path) -> None:
    run = plant_run(str(tmp_path / "run"), tmp_path)
    student = Path(run.url) / "student"
    load_model(student, torch.bfloat16).save_pretrained(student)
    folder = tmp_path / "out"
    facts = export.export(find_source(run.url, "student"), folder, [Format.HF])
    assert facts["dtype"] == "bfloat16"
    assert facts["formats"]["hf"]["tolerance"] == facts["formats"]["hf"]["max_difference"] == 0
    size, parameters = (folder / "model.safetensors").stat().st_size, facts["parameters"]
    assert 2 * parameters <= size < 3 * parameters


def test_a_run_that_was_moved_is_found_where_it_is(tmp_path: Path) -> None:
    run = plant_run(str(tmp_path / "run"), tmp_path)
    moved = Path(run.url).rename(tmp_path / "moved")
    source = find_source(str(moved), "student")
    assert source.weights == str(moved / "student")


def test_code_that_a_config_names_is_not_handed_on(tmp_path: Path) -> None:
    run = plant_run(str(tmp_path / "run"), tmp_path)
    path = Path(run.url) / "student" / "config.json"
    named = {"AutoModelForCausalLM": "someone/else--modeling.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": named}))
    export.export(find_source(run.url, "student"), tmp_path / "out", [Format.HF], rows=2)
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_another_models_logits_are_refused_and_nothing_is_left(
    run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_source(run.url, "student")
    own = load_model(source.weights).eval()
    batches = validation_batches(source.prepared, 4, packed=True)
    other = load_model(source.weights).eval()
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    found = compare(own, forward_of(other), batches, source.prepared.outputs)
    with pytest.raises(KdscaleError, match=r"differ from the run's own by [\d.]+; 1e-05 are"):
        found.check_difference(1e-5, "it")
    broken = compare(own, lambda i, m: own(i).logits * torch.nan, batches, source.prepared.outputs)
    with pytest.raises(KdscaleError, match="by nan"):
        broken.check_difference(np.inf, "it")
    with pytest.raises(KdscaleError, match="are nan nats"):
        broken.check_kl(np.inf, "it")

    def save_other(model: Any, folder: Path, auto_class: str) -> None:
        other.save_pretrained(folder)

    monkeypatch.setattr(export, "save_model", save_other)
    with pytest.raises(KdscaleError, match="The logits of the Hugging Face folder differ"):
        export.export(source, tmp_path / "out", [Format.HF])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        KdscaleError, match=r"nothing is not the output of a run: it has no run\.json"
    ):
        find_source(str(tmp_path / "nothing"), "student")
    run = plant_run(str(tmp_path / "run"), tmp_path)
    with pytest.raises(KdscaleError, match="has no complete baseline"):
        find_source(run.url, "baseline")
    with pytest.raises(KdscaleError, match="has no complete teacher"):
        find_source(run.url, "teacher")
    write_record(run, distill="stopped")
    with pytest.raises(KdscaleError, match="its stage 'distill' is stopped") as refused:
        find_source(run.url, "student")
    assert refused.value.fix == "Finish it: kdscale run CONFIG --from distill."
    write_record(run)
    run.delete("results.json")
    with pytest.raises(KdscaleError, match="has no results"):
        find_source(run.url, "student")


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    check_target(tmp_path)
    check_target(tmp_path / "new")
    (tmp_path / "file").write_text("")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(KdscaleError, match="is not an empty folder"):
            check_target(taken)
    with pytest.raises(KdscaleError, match="is no local folder"):
        check_target(Path("s3://bucket/export"))


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    monkeypatch.setattr(to_onnx, "PACKAGES", ("onnx", "not_installed_here"))
    with pytest.raises(KdscaleError, match="needs not_installed_here") as refused:
        export.check_formats([Format.HF, Format.ONNX])
    assert refused.value.fix == "pip install 'kdscale[export]'"
    export.check_formats([Format.HF])
