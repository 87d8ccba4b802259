"""Output of a finished run, made without a cluster: sequences, three models, config, results."""

import json
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from kdscale.config.data import DataConfig
from kdscale.config.teacher import ModelConfig
from kdscale.data.rows.manifest import FORMAT, VERSION, write_manifest
from kdscale.data.rows.pack import Layout, RowBuilder, concatenate
from kdscale.data.rows.splits import SplitWriter
from kdscale.data.tokenizer import encode, train_tokenizer
from kdscale.evaluate.results import write_results
from kdscale.models.hf_folder import publish
from kdscale.models.load import build_model, count_parameters, make_config
from kdscale.store import Store, open_store, upload_folder
from tests.runs import tiny_config, write_corpus
from tests.unit.report.sample import sample_results

T = 64
_MODULES = ["argparse", "ast", "calendar", "dataclasses", "inspect", "tarfile"]
_SIZES = {"teacher": 24, "student": 16, "baseline": 16}


def make_finished_run(folder: Path, **changes: Any) -> Store:
    """Make the run in `folder`/output; `changes` as of `tiny_config`."""
    corpus = write_corpus(folder / "corpus", _MODULES)
    store = open_store(str(folder / "output"))
    config = tiny_config(corpus, store.url, data__seq_len=T, **changes)
    config["tracking"] = {"wandb": "disabled"}
    store.put("config.resolved.yaml", yaml.safe_dump(config).encode())
    record = {"stages": {"prepare": {"state": "complete", "fingerprint": "rows"}}}
    store.put("run.json", json.dumps(record).encode())
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus.iterdir())]
    ids = _prepare(store.child("prepared/rows"), texts, folder / "tokenizer")
    for name, hidden in _SIZES.items():
        make_model(store, name, hidden, ids, folder / "tokenizer")
    write_results(store, sample_results())
    return store


def make_model(
    store: Store, name: str, hidden: int, ids: dict[str, Any], tokenizer: Path, **options: Any
) -> None:
    """Publish a Llama with random weights to `name`; its embedding has padding."""
    sizes = {"hidden_size": hidden, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.4}
    shape = ModelConfig(
        architecture="llama", options=sizes | heads | options, pad_vocab_to_multiple_of=64
    )
    special = {f"{n}_token_id": ids[f"{i}_id"] for n, i in _SPECIAL.items()}
    model = build_model(make_config(shape, ids["vocab_size"], special, T), seed=hidden)
    publish(
        store,
        name,
        export=lambda folder: model.save_pretrained(folder),
        tokenizer=tokenizer,
        fingerprint=name,
        parameters=count_parameters(model),
    )


_SPECIAL = {"bos": "start", "eos": "end", "pad": "pad"}


def _prepare(store: Store, texts: list[str], tokenizer: Path) -> dict[str, Any]:
    """Write sequences as the prepare stage does, all of them held out."""
    info = train_tokenizer(texts, 400, tokenizer)
    upload_folder(tokenizer, store, "tokenizer")
    builder = RowBuilder(Layout(T, 1, False, True, info.pad_id))
    text = (tokenizer / "tokenizer.json").read_text()
    encoded = chain.from_iterable(encode(text, info, [t[:12000] for t in texts]))
    rows = concatenate(list(builder.build(encoded)), T)
    writer = SplitWriter("causal-lm", DataConfig(seq_len=T), store, "", info, lambda *_: None)
    # The quickest way to an entry of the manifest: the writer's own last step.
    entry = writer._store_rows("validation", [rows], replace(builder.counts))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "seq_len": T,
        "tokenizer": info.as_dict(),
        "splits": {"train": entry, "validation": entry},
    }
    write_manifest(store, manifest)
    return asdict(info)
