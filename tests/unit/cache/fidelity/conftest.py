"""Fixtures: a run's output with a small random teacher and a cache that was captured from it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.format.packing import packable
from kdscale.cache.rows import RowStats
from kdscale.cache.spec import FORMAT
from kdscale.config.cache import CodecConfig, VaroptCodec
from kdscale.models.forward import compute_logits, row_tensors
from kdscale.models.hf_folder import publish, read_marker
from kdscale.models.load import load_model
from kdscale.store import open_store
from tests.unit.cache.planted import ROW_LENGTH, VOCAB, Planted, planted_rows

SEED, TEMPERATURE, ROWS = 11, 1.5, 23


@dataclass(frozen=True)
class AuditedRun:
    """The paths of a run and its cache."""

    output: Path
    teacher: Path
    cache: Planted

    @property
    def url(self) -> str:
        return self.cache.store.url


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Hugging Face folder with a random teacher.

    It has 14 embeddings more than the tokenizer has ids, and is sharp enough that ids differ in
    probability.
    """
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB + 14,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.6,
    )
    output = open_store(str(tmp_path_factory.mktemp("teacher")))
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    model = LlamaForCausalLM(config)
    publish(
        output,
        "teacher",
        export=model.save_pretrained,
        tokenizer=tokenizer,
        fingerprint="0123",
        parameters=model.num_parameters(),
    )
    folder = output.local_path("teacher")
    assert folder is not None
    return folder


def capture(
    output: Path, teacher: Path, config: CodecConfig | None = None, seed: int = SEED
) -> AuditedRun:
    """Make a finished cache of `teacher` in `output` by the steps of a capture."""
    shutil.copytree(teacher, output / "teacher")
    store = open_store(str(output))
    marker = read_marker(store.child("teacher"))
    assert marker is not None
    codec = make_codec(config or VaroptCodec(k=6, head=3), VOCAB)
    rows = planted_rows(ROWS)
    payload = np.zeros((ROWS, ROW_LENGTH, codec.bytes_per_position), np.uint8)
    entropy, nll = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.float32)
    model = load_model(teacher).eval()
    for row in range(ROWS):
        ids, segments, mask, *_ = row_tensors(rows.take(np.array([row])), torch.device("cpu"))
        with torch.no_grad():
            logits = compute_logits(model, ids, segments, VOCAB)[0]
        names = torch.from_numpy(rows.sample_ids[row : row + 1].copy())
        noise = uniforms(seed, names, ROW_LENGTH, codec.streams)[0]
        encoded = codec.encode(logits, noise, temperature=TEMPERATURE)
        payload[row, mask[0].numpy()] = encoded.payload[mask[0]].numpy()
        losses = torch.nn.functional.cross_entropy(
            logits / TEMPERATURE, torch.roll(ids, -1, dims=1)[0], reduction="none"
        )
        entropy[row], nll[row] = encoded.entropy[mask[0]].mean(), losses[mask[0]].mean()
    identity = {
        "format": FORMAT,
        "teacher": marker.digest,
        "tokenizer": "cd" * 8,
        "vocab_size": VOCAB,
        "seq_len": ROW_LENGTH,
        "codec": codec.describe(),
        "temperature": TEMPERATURE,
        "dtype": "float32",
        "seed": SEED,
    }
    stats = RowStats(rows.sample_ids, entropy, nll, rows.loss_mask.sum(1).astype(np.int32))
    planted = Planted(
        store.child("cache/0123"), codec, identity, rows, stats, payload, 8, packable(codec)
    )
    return AuditedRun(output, teacher, planted.publish())


@pytest.fixture(scope="session")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    """Capture with the codec varopt, packed in the store."""
    return capture(tmp_path_factory.mktemp("run"), teacher)


@pytest.fixture(scope="session")
def misaligned(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    """Capture a cache whose payload was drawn under another seed than it records."""
    return capture(tmp_path_factory.mktemp("misaligned"), teacher, seed=SEED + 1)
