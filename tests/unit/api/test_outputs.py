"""A cache opened by the output of its run, and the examples of the docs, which do that."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

import kdscale
from kdscale.data.rows.order import spread
from kdscale.run.finished_run import RECORD_KEY
from tests.pages import ROOT, blocks
from tests.training import student
from tests.unit.api.outputs import CACHED, VALIDATION, write_output
from tests.unit.cache.planted import assert_same_rows, planted_rows


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_output(tmp_path / "runs" / "first")
    return tmp_path / "runs" / "first"


def test_a_run_brings_its_cache_and_its_validation(output: Path) -> None:
    cache = kdscale.open_cache(str(output))
    assert len(cache) == CACHED
    assert cache.run.config.name == "tiny"
    # validation_sequences of its config is 16.
    expected = planted_rows(VALIDATION).take(spread(16, VALIDATION))
    assert_same_rows(cache.validation(), expected)
    assert len(cache.validation(3)) == 3


def test_a_student_of_another_run_reads_the_cache_of_its_base(output: Path) -> None:
    based = output.with_name("second")
    based.mkdir()
    config = (output / "config.resolved.yaml").read_text()
    (based / "config.resolved.yaml").write_text(f"{config}base: {output}\n")
    (based / RECORD_KEY).write_text(json.dumps({"stages": {}}))
    cache = kdscale.open_cache(str(based))
    assert len(cache) == CACHED
    assert len(cache.validation()) == 16


def test_a_run_brings_as_many_generations_as_its_student_read(output: Path) -> None:
    record = json.loads((output / RECORD_KEY).read_text())
    pins = {"cache_generations": {"fingerprint": "f", "value": [1]}}
    (output / RECORD_KEY).write_text(json.dumps({**record, "pinned": pins}))
    cache = kdscale.open_cache(str(output))
    assert len(cache.reader.manifest.generations) == 1
    pins["cache_generations"]["value"] = [2]
    (output / RECORD_KEY).write_text(json.dumps({**record, "pinned": pins}))
    with pytest.raises(kdscale.KdscaleError, match="generation"):
        kdscale.open_cache(str(output))


def test_the_examples_of_the_docs_run(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student().save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    found = blocks(ROOT / "docs" / "python.md", "python")
    assert len(found) >= 5
    names: dict[str, object] = {}
    for block in found:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert not dist.is_initialized()
    assert (tmp_path / "trained" / "model.safetensors").is_file()
    state, batch = names["resumed"], names["batch"]
    assert isinstance(state, kdscale.Loader)
    assert isinstance(batch, kdscale.Batch)
    assert np.issubdtype(batch.indices.dtype, np.integer)
