"""Finished runs made in a second: a random student over real rows, and what every stage leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdscale.config import dump_config, parse_config
from kdscale.config.data import ChunksConfig, DataConfig
from kdscale.config.task import Task
from kdscale.config.teacher import ModelConfig
from kdscale.data.documents import TokenDocument
from kdscale.data.rows.manifest import FORMAT, VERSION, write_manifest
from kdscale.data.rows.splits import SplitWriter, make_builder
from kdscale.data.tokenizer import train_tokenizer
from kdscale.evaluate.results import write_results
from kdscale.models.hf_folder import publish
from kdscale.models.load import build_model, count_parameters, make_config
from kdscale.models.tasks import TaskSpec
from kdscale.run.finished_run import CONFIG_KEY, RECORD_KEY
from kdscale.run.stage_names import STAGES
from kdscale.store import Store, open_store, upload_folder
from tests.unit.report.sample import CONFIG, sample_results

LENGTH, CHUNK = 32, 8
CLASSES = ("a", "b", "c")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def plant_run(
    url: str, scratch: Path, task: Task = "causal-lm", architecture: str = "llama", **data: Any
) -> Store:
    """Write a run at `url` with a student; `data` are fields of the data's config."""
    output = open_store(url)
    if task == "sequence-classification":
        data = {"labels": {"classes": CLASSES}, **data}
    config = DataConfig.model_validate({"seq_len": LENGTH, **data})
    masks = task == "masked-lm"
    info = train_tokenizer(["words for a tokenizer"], 300, scratch / "tokenizer", masks=masks)
    prepared = output.child("prepared/fp")
    upload_folder(scratch / "tokenizer", prepared, "tokenizer")
    builder = make_builder(task, config, info, config.overlap)
    writer = SplitWriter(task, config, prepared, "", info, lambda *_: None)
    rows = list(builder.build(documents(info.vocab_size)))
    entry = writer._store_rows("validation", rows, builder.counts)
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, "seq_len": LENGTH}
    if task == "sequence-classification":
        manifest["classes"] = CLASSES
    manifest |= {"tokenizer": info.as_dict(), "splits": {"validation": entry}}
    write_manifest(prepared, manifest)

    classes = CLASSES if task == "sequence-classification" else ()
    chunks = config.chunks if isinstance(config.chunks, ChunksConfig) else None
    model = random_model(architecture, info.vocab_size, TaskSpec(task, classes, chunks))
    publish(
        output,
        "student",
        export=model.save_pretrained,
        tokenizer=scratch / "tokenizer",
        fingerprint="0" * 16,
        parameters=count_parameters(model),
    )
    write_results(output, {**sample_results(), "task": task, "classes": list(classes)})
    output.put(CONFIG_KEY, dump_config(parse_config(CONFIG)).encode())
    write_record(output)
    return output


def write_record(output: Store, **states: str) -> None:
    """`run.json` with all stages complete but those given."""
    stages = {name: {"state": states.get(name, "complete"), "fingerprint": "fp"} for name in STAGES}
    output.put(RECORD_KEY, json.dumps({"stages": stages}).encode())


def documents(vocab_size: int, count: int = 24) -> list[TokenDocument]:
    """Return documents of 4 to 27 random tokens, so that rows hold several, or padding."""
    random = np.random.default_rng(0)
    texts = [random.integers(2, vocab_size, random.integers(4, 28)) for _ in range(count)]
    return [
        TokenDocument(tokens.astype(np.int32), 3 * len(tokens), number % len(CLASSES))
        for number, tokens in enumerate(texts)
    ]


def random_model(architecture: str, vocab_size: int, task_spec: TaskSpec) -> Any:
    """Weights so large that logits are of the order of 1, norms and biases not left out."""
    options = SIZES | ({"num_key_value_heads": 4} if architecture == "llama" else {})
    shape = make_config(
        ModelConfig(architecture=architecture, options=options, pad_vocab_to_multiple_of=64),
        vocab_size,
        {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
        LENGTH,
        task_spec,
    )
    model = build_model(shape, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model
