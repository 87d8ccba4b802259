"""Runs to look at: a corpus of a few lines, a teacher of a few weights, and a config of both."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdscale.cache.codecs import make_codec
from kdscale.cache.commit.manifest import manifest_key
from kdscale.cache.commit.plan import plan_key
from kdscale.cache.format.records import ManifestRecord, PlanRecord, read_record, record_bytes
from kdscale.cache.origin import write_origin
from kdscale.config import RunConfig, fingerprint
from kdscale.config.teacher import ModelConfig
from kdscale.data.tokenizer import adopt_tokenizer, train_tokenizer
from kdscale.models.hf_folder import weights_digest
from kdscale.models.load import build_model, make_config
from kdscale.models.tasks import CAUSAL_LM, TaskSpec
from kdscale.store import open_store
from kdscale.teacher.pretrained import save_tokenizer
from tests.changes import changed
from tests.unit.cache.planted import make_planted

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
SMALL = {**LLAMA, "hidden_size": 16, "num_hidden_layers": 2}
TEXT = "the quick brown fox jumps over the lazy dog and then sleeps under a tree for days"
WORDS = TEXT.split()
IDS = 300


def write_documents(folder: Path, count: int = 40) -> Path:
    """JSON lines with a text and a label each."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "a.jsonl").open("w") as file:
        for number in range(count):
            text = " ".join(WORDS[(number * 7 + at) % len(WORDS)] for at in range(60 + number % 5))
            file.write(json.dumps({"text": text, "label": "ab"[number % 2]}) + "\n")
    return folder


def write_teacher(
    folder: Path,
    architecture: str = "llama",
    options: dict[str, Any] | None = None,
    task_spec: TaskSpec = CAUSAL_LM,
    seq_len: int = 64,
    words: tuple[str, ...] = tuple(WORDS),
) -> Path:
    """Write a Hugging Face folder with weights and a tokenizer."""
    text = " ".join(words) + " "
    info = train_tokenizer([text * 4] * 4, IDS, folder, masks=task_spec.task == "masked-lm")
    special = {"bos_token_id": info.start_id, "eos_token_id": info.end_id}
    special["pad_token_id"] = info.pad_id
    model = ModelConfig(architecture=architecture, options=options or LLAMA)
    shape = make_config(model, info.vocab_size, special, seq_len, task_spec)
    build_model(shape, 0).save_pretrained(folder)
    return folder


def run_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a config over `folder`/text and `folder`/teacher.

    `changes` are dotted keys with `__` for the dot.
    """
    found: dict[str, Any] = {
        "name": "small",
        "output": str(folder / "output"),
        "data": {
            "train": {"kind": "jsonl", "path": str(folder / "text")},
            "tokenizer": {"kind": "teacher"},
            "seq_len": 64,
        },
        "teacher": {"load": str(folder / "teacher")},
        "cache": {"codec": {"kind": "varopt", "k": 8}, "sequences": 64},
        "distill": {
            "student": {"model": {"architecture": "llama", "options": dict(SMALL)}},
            "training": {"steps": 8, "global_batch_size": 8, "micro_batch_size": 4},
        },
    }
    return changed(found, changes)


def write_cache(
    folder: Path,
    tree: dict[str, Any],
    *,
    origin: bool = True,
    tokenizer_of: Path | None = None,
    **identity: Any,
) -> Path:
    """Write a finished cache of eight rows whose identity is that of the run `tree`.

    But for `identity`, and for the tokenizer of the teacher in `tokenizer_of`.
    """
    config = RunConfig.model_validate(tree)
    source = Path(str(config.teacher.load))
    with TemporaryDirectory() as scratch:
        saved = save_tokenizer(config, str(tokenizer_of or source), Path(scratch) / "saved")
        adopted = folder.with_name(f"{folder.name}-tokenizer")
        info = adopt_tokenizer(saved, adopted)
    store = open_store(str(folder))
    planted = make_planted(store, rows=8).publish()
    own = {
        "tokenizer": info.sha256,
        "vocab_size": info.vocab_size,
        "seq_len": config.data.seq_len,
        "teacher": weights_digest(source),
        "codec": make_codec(config.cache.codec, info.vocab_size).describe(),
    }
    whole = {**planted.identity, **own, **identity}
    plan = read_record(PlanRecord, store, plan_key(0))
    store.put(plan_key(0), record_bytes(plan.model_copy(update={"identity": whole})))
    record = read_record(ManifestRecord, store, manifest_key(1))
    renamed = {"identity": whole, "fingerprint": fingerprint(whole)}
    store.put(manifest_key(1), record_bytes(record.model_copy(update=renamed)))
    if origin:
        write_origin(store, {"teacher": {"source": str(source)}}, adopted)
    return folder
