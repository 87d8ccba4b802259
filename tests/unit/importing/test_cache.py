"""An imported cache is a cache: resumed exactly once, and known to every command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.origin import read_facts, read_tokenizer
from kdscale.cache.read.reader import CacheReader
from kdscale.data.tokenizer import adopt_tokenizer
from kdscale.models.hf_folder import weights_digest
from kdscale.store import open_store
from tests.small_llama import llama_config, strong_llama
from tests.unit.importing.imported import TEACHER, import_set, run
from tests.unit.importing.sets import (
    Source,
    V,
    column_rows,
    make_source,
    tokenizer_folder,
    write_parquet,
)

K = 20
# Small shards: two rows each, and a kill in the middle of the third commit or before it.
_SMALL = """
import os, signal, sys
import kdscale.importing.write as write
from kdscale.cache.commit.writer import ShardWriter
from kdscale.cli import main
write._SHARD_BYTES = 2 * 16 * (20 * 4 + 13)
commit, put, done = ShardWriter.commit, ShardWriter._put, []
def killed(self, *arguments):
    done.append(arguments)
    if WHEN == "before" and len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, *arguments)
def half(self, *arguments):
    put(self, *arguments)
    if WHEN == "inside" and len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
ShardWriter.commit, ShardWriter._put = killed, half
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source((30, 12, 41, 25, 9, 33, 18, 40))


def _rows(out: Path) -> list[bytes]:
    reader = CacheReader(open_store(str(out)))
    cached = reader.read(np.arange(len(reader)))
    return [
        cached.rows.sample_ids[n].tobytes() + cached.payload[n].tobytes()
        for n in range(len(cached))
    ]


@pytest.mark.fault
@pytest.mark.parametrize("kill", [pytest.param("before", marks=pytest.mark.slow), "inside"])
def test_a_killed_import_continues_and_has_every_row_once(
    tmp_path: Path,
    tokenizer: Path,
    source: Source,
    kill: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_parquet(tmp_path / "set.parquet", column_rows(source, K))
    out = tmp_path / "out"
    options = ("--teacher", TEACHER, "--tokenizer", str(tokenizer), "--seq-len", "16")
    arguments = ["cache", "import", str(path), str(out), *options]
    script = _SMALL.replace("WHEN", repr(kill))
    died = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
    assert died.returncode == -signal.SIGKILL
    assert len(list((out / "commits").iterdir())) == 2
    assert not (out / "manifests").exists()
    # Without another survey: the plan has it.
    capsys.readouterr()
    assert run(*arguments[1:]) == 0
    printed = capsys.readouterr().out
    assert "sequences: " not in printed
    assert "targets" in printed
    whole = import_set(path, tmp_path / "whole", tokenizer, "--seq-len", "16")
    assert _rows(out) == _rows(whole.out)
    assert len(set(_rows(out))) == len(_rows(out))
    manifest = load_manifest(open_store(str(out)))
    assert len(manifest.shards) > 3
    assert run("verify", str(out)) == 0
    # What the killed writer left is no part of it.
    assert run("gc", str(out), "--grace", "0s") == 0
    assert run("verify", str(out)) == 0
    assert run(*arguments[1:]) == 0
    assert load_manifest(open_store(str(out))).version == 1
    # A shard that was lost comes from the set again.
    shard = manifest.shards[1].object
    before = (out / shard).read_bytes()
    (out / shard).write_bytes(before[:-9])
    capsys.readouterr()
    assert run("repair", str(out)) == 0
    assert "`kdscale cache import` command" in capsys.readouterr().err
    assert run(*arguments[1:]) == 0
    assert (out / shard).read_bytes() == before
    assert run("verify", str(out)) == 0


def test_another_set_does_not_go_into_the_same_cache(
    tmp_path: Path, tokenizer: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "more": "[]"} for row in column_rows(source, K)]
    path = write_parquet(tmp_path / "set.parquet", rows)
    import_set(path, tmp_path / "out", tokenizer)
    arguments = ("import", str(path), str(tmp_path / "out"), "--tokenizer", str(tokenizer))
    assert run(*arguments, "--teacher", "somebody/else") == 2
    assert "differs in teacher" in capsys.readouterr().err
    # Options of the cache, and of how the set is read.
    for option in (("--seq-len", "16"), ("--align", "next"), ("--column", "messages=more")):
        assert run(*arguments, "--teacher", TEACHER, *option) == 2, option
        assert "options have changed" in capsys.readouterr().err
    os.utime(path, (1, 1))
    assert run(*arguments, "--teacher", TEACHER) == 2
    assert "Import to an empty place" in capsys.readouterr().err


def test_its_commands_and_its_origin(
    tmp_path: Path, tokenizer: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_parquet(tmp_path / "set.parquet", column_rows(source, K))
    found = import_set(path, tmp_path / "out", tokenizer, "--temperature", "2")
    store = open_store(str(found.out))
    capsys.readouterr()
    assert run("inspect", store.url, "--sample", "2") == 0
    facts = yaml.safe_load(capsys.readouterr().out)
    identity = facts["identity"]
    assert identity["teacher"] == f"{TEACHER}@main"
    assert identity["import"] == {"layout": "plain columns", "values": "logprobs", "rest": "ghost"}
    assert identity["temperature"] == 2
    assert (identity["vocab_size"], facts["codec"]["k"]) == (V, K)
    assert len(facts["sample"]) == 2
    assert all(position["targets"] for position in facts["sample"])
    for command in ("stats", "gc"):
        assert run(command, store.url) == 0
    assert run("export", store.url, str(tmp_path / "exported")) == 0
    about = read_facts(store)["import"]
    assert about["alignment"]["0"]["mean_log_prob"] > about["alignment"]["1"]["mean_log_prob"] + 2
    assert about["targets"] == sum(map(len, source.tokens)) - len(source.tokens)
    assert read_tokenizer(store, identity) is not None


def test_a_run_s_teacher_has_the_same_identity(
    tmp_path: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a teacher in a folder the identity has its weights; `audit` runs it over the rows."""
    import torch

    teacher = tmp_path / "teacher"
    tokenizer_folder(teacher)
    model = strong_llama(llama_config(V, 64, width=32), seed=0)
    model.save_pretrained(teacher)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, V, (6, 1), generator=generator)
    with torch.no_grad():
        for _ in range(23):
            p = torch.softmax(model(tokens).logits[:, -1], -1)
            tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], 1)
        whole = torch.log_softmax(model(tokens).logits.double(), -1).numpy()
    own = Source(list(tokens.numpy()), list(whole))
    path = write_parquet(tmp_path / "set.parquet", column_rows(own, 12))
    out = tmp_path / "out"
    assert run("import", str(path), str(out), "--teacher", str(teacher)) == 0
    identity = CacheReader(open_store(str(out))).identity
    assert identity["teacher"] == weights_digest(teacher)
    adopted = adopt_tokenizer(teacher, tmp_path / "adopted")
    assert identity["tokenizer"] == adopted.sha256
    assert adopt_tokenizer(tmp_path / "adopted", tmp_path / "again").sha256 == adopted.sha256
    capsys.readouterr()
    arguments = ("audit", str(out), "--teacher", str(teacher), "--rows", "2", "--json")
    assert run(*arguments) == 0
    audit = json.loads(capsys.readouterr().out)
    assert audit["proof"]["ids_in_common"] > 0.999
