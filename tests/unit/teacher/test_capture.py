"""A capture by one worker in this process: what it stores, logs, and does when it is run again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.commit.plan import create_or_load_plan, selection_hash
from kdscale.cache.format.records import commit_key
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.spec import FORMAT
from kdscale.config import RunConfig
from kdscale.config.data import DataConfig
from kdscale.config.training import TeacherGroup
from kdscale.data.rows.manifest import FORMAT as DATA_FORMAT
from kdscale.data.rows.manifest import VERSION, write_manifest
from kdscale.data.rows.pack import Layout, RowBuilder, RowCounts, concatenate
from kdscale.data.rows.splits import SplitWriter
from kdscale.data.tokenizer import train_tokenizer
from kdscale.models.forward import row_tensors, target_logits
from kdscale.models.hf_folder import ModelReference
from kdscale.store import Store, open_store, upload_folder
from kdscale.teacher.capture import CaptureJob
from kdscale.types import DenseTargets, Rows
from tests.runs import read_metrics

T, CAPTURED = 16, 21


@dataclass(frozen=True)
class Subject:
    """A job, and what it is made of."""

    job: CaptureJob
    rows: Rows
    model: PreTrainedModel

    def run(self) -> None:
        self.job.run()

    @property
    def metrics(self) -> list[dict[str, float]]:
        return read_metrics(self.job.output.get("metrics/cache.jsonl"))


def write_prepared(store: Store, folder: Path, length: int = T) -> tuple[Rows, int]:
    """Write sequences of `length` random tokens; return them and the size of the vocabulary."""
    info = train_tokenizer(["some words for a tokenizer"], 300, folder)
    upload_folder(folder, store, "tokenizer")
    generator = np.random.default_rng(0)
    texts = [
        (generator.integers(0, info.vocab_size, n).astype(np.int32), int(3 * n))
        for n in generator.integers(2, 60, 40)
    ]
    rows = concatenate(list(RowBuilder(Layout(length, 3, False, True, 0)).build(texts)), length)
    writer = SplitWriter("causal-lm", DataConfig(seq_len=length), store, "", info, lambda *_: None)
    entry = writer._store_rows("train", [rows], RowCounts(rows=len(rows)))
    manifest = {
        "format": DATA_FORMAT,
        "version": VERSION,
        "seq_len": length,
        "tokenizer": info.as_dict(),
        "splits": {"train": entry},
    }
    write_manifest(store, manifest)
    return rows, info.vocab_size


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return make_subject(tmp_path)


def make_llama(vocab_size: int) -> PreTrainedModel:
    """Return a small model with padded embeddings: ids past the tokenizer's must not be seen."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size + 5, **sizes, **heads)).eval()


def make_subject(
    tmp_path: Path,
    make_model: Callable[[int], PreTrainedModel] = make_llama,
    *,
    length: int = T,
    count: int = CAPTURED,
    stage: int = 0,
    codec: str = "full",
    group: TeacherGroup = "auto",
) -> Subject:
    """Return a job of `count` sequences in shards of 6, in batches of 4, at a ZeRO stage.

    With `group`, by as many workers as make two of them. `make_model` gives the teacher for a size
    of vocabulary.
    """
    output = open_store(str(tmp_path / "output"))
    rows, vocab_size = write_prepared(output.child("prepared/x"), tmp_path / "tokenizer", length)
    model = make_model(vocab_size)
    model.save_pretrained(tmp_path / "teacher")
    config = RunConfig.model_validate(
        {
            "name": "capture",
            "output": str(tmp_path / "output"),
            "data": {"seq_len": length, "tokenizer": {"kind": "teacher"}},
            "teacher": {"load": str(tmp_path / "teacher")},
            "cache": {
                "codec": {"kind": codec},
                "temperature": 1.5,
                "sequences": count,
                "sequences_per_shard": 6,
                "sequences_per_chunk": 3,
                "capture": {
                    "teacher_sharding": "zero3" if stage == 3 else "none",
                    "teacher_group": group,
                    "workers": {"count": 2 * group if isinstance(group, int) else 2},
                    "micro_batch_size": 4,
                },
            },
            "distill": {
                "student": {"teacher_layers": [0]},
                "training": {"steps": 1, "global_batch_size": 1},
            },
            "tracking": {"wandb": "disabled"},
        }
    )
    selected = np.arange(count) * (len(rows) // count)
    identity = {
        "format": FORMAT,
        "vocab_size": vocab_size,
        "seq_len": length,
        "codec": make_codec(config.cache.codec, vocab_size).describe(),
    }
    plan = create_or_load_plan(
        output.child("cache/x"),
        identity,
        data="data",
        request=selection_hash(selected),
        rows=count,
        sequences_per_shard=6,
        sequences_per_chunk=3,
    )
    job = CaptureJob(
        config=config,
        output=output,
        prepared=output.child("prepared/x"),
        cache=output.child("cache/x"),
        teacher=ModelReference("f", str(tmp_path / "teacher"), None, "d", 0),
        identity=identity,
        plan=plan,
        selected=selected,
        put_if_absent=output.child("cache/x").put_if_absent,
    )
    return Subject(job, rows.take(selected), model)


@torch.no_grad()
def differing_bytes(subject: Subject) -> int:
    """Return how many of the cached bytes differ from those of transformers' own logits.

    And check the statistics, which are exact.
    """
    job, reader = subject.job, CacheReader(subject.job.cache)
    cached = reader.read(np.arange(len(subject.rows)))
    codec, config = make_codec(job.config.cache.codec, job.identity["vocab_size"]), job.config
    differing = 0
    for shard in job.plan.shards:
        for start in range(shard.start, shard.stop, config.cache.capture.micro_batch_size):
            stop = min(start + config.cache.capture.micro_batch_size, shard.stop)
            rows = subject.rows.take(np.arange(start, stop))
            batch, where = row_tensors(rows, torch.device("cpu")), rows.loss_mask
            logits = target_logits(subject.model, batch, codec.vocab_size)
            noise = uniforms(
                config.seed,
                torch.from_numpy(rows.sample_ids),
                rows.input_ids.shape[1],
                codec.streams,
            )
            encoded = codec.encode(logits, noise[batch.mask], temperature=config.cache.temperature)
            found = cached.payload[start:stop].reshape(*where.shape, -1)
            differing += int((found[where] != encoded.payload.numpy()).sum())
            assert not found[~where].any()
            each = np.split(encoded.entropy.numpy().astype(float), np.cumsum(where.sum(1))[:-1])
            means = np.array([row.mean() for row in each], np.float32)
            np.testing.assert_allclose(cached.entropy[start:stop], means, rtol=1e-6)
    return differing


@torch.no_grad()
def worst_target(subject: Subject) -> float:
    """Return how far a log-probability in the cache is from the model's, at the likely ids.

    The model is run by transformers on each document alone; float16 rounds unlikely ids more.
    """
    reader = CacheReader(subject.job.cache)
    count = len(subject.rows)
    cached = reader.read(np.arange(count))
    assert cached.rows.sample_ids.tolist() == subject.rows.sample_ids.tolist()
    targets = reader.codec.decode(torch.from_numpy(cached.payload.copy()))
    assert isinstance(targets, DenseTargets)
    vocab_size, checked, worst = subject.job.identity["vocab_size"], 0, 0.0
    for row in range(count):
        ids, segments = subject.rows.input_ids[row], subject.rows.segment_ids[row]
        mask, entropies = subject.rows.loss_mask[row].astype(bool), []
        for segment in np.unique(segments[mask]):
            here = segments == segment
            alone = subject.model(torch.from_numpy(ids[here]).long()[None], use_cache=False)
            exact = (alone.logits[0, mask[here], :vocab_size] / 1.5).log_softmax(-1)
            found = targets.log_probs[row, torch.from_numpy(here & mask)]
            worst = max(worst, (found - exact)[exact > -8].abs().max().item())
            entropies += (-(exact.exp() * exact).sum(-1)).tolist()
        assert cached.entropy[row] == pytest.approx(np.mean(entropies), rel=1e-4)
        checked += len(entropies)
    assert checked == subject.rows.loss_mask.sum() > subject.rows.input_ids.size / 2
    return worst


def test_every_target_is_the_teachers_distribution(subject: Subject) -> None:
    subject.run()
    assert worst_target(subject) < 5e-3


@pytest.mark.parametrize("codec", ["full", "varopt", "topk", "sample"])
def test_its_bytes_are_those_of_the_teachers_own_logits(codec: str, tmp_path: Path) -> None:
    subject = make_subject(tmp_path, codec=codec)
    subject.run()
    assert differing_bytes(subject) == 0


def test_a_line_a_round_with_what_capture_cost(subject: Subject) -> None:
    subject.run()
    lines = subject.metrics
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["tokens"] for line in lines] == [6 * T, 12 * T, 18 * T, CAPTURED * T]
    shards = CacheReader(subject.job.cache).manifest.shards
    size = sum(shard.length + shard.index_length for shard in shards)
    last = lines[-1]
    assert last["bytes_committed"] == size
    assert last["bytes_per_token"] == pytest.approx(size / (CAPTURED * T))
    assert 0 < last["outside_forward_share"] < 1
    # Encoding is done between forwards here.
    assert 0 < last["encode_share"] < last["outside_forward_share"]
    assert last["upload_share"] > 0
    assert last["queue_wait_seconds"] >= 0
    assert last["tokens_per_second"] > 0


def test_run_again_captures_only_what_is_missing(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    subject.run()
    cache = subject.job.cache
    before = {key: cache.get(key) for key in cache.list("")}
    lost = json.loads(cache.get(commit_key(2)))
    cache.delete(commit_key(2))
    capsys.readouterr()
    subject.run()
    assert "1 of 4 shards to capture" in capsys.readouterr().out
    after = {key: cache.get(key) for key in cache.list("")}
    assert after.keys() == before.keys()
    # The same bytes, though the first batch of a shard is another one.
    found = json.loads(cache.get(commit_key(2)))
    volatile = {"attempt", "seconds", "checksum"}
    assert {k: v for k, v in found.items() if k not in volatile} == {
        k: v for k, v in lost.items() if k not in volatile
    }
    differing = {key for key in before if before[key] != after[key]}
    assert differing == {commit_key(2)}
    subject.run()
    assert "0 of 4 shards to capture" in capsys.readouterr().out
