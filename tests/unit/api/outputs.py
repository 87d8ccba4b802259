"""Output of a small finished run, written without running one."""

import json
from pathlib import Path

import yaml

from kdscale.config.data import DataConfig
from kdscale.data.rows.manifest import FORMAT, VERSION, write_manifest
from kdscale.data.rows.pack import RowCounts
from kdscale.data.rows.splits import SplitWriter
from kdscale.data.tokenizer import train_tokenizer
from kdscale.run.finished_run import CONFIG_KEY, RECORD_KEY
from kdscale.store import open_store, upload_folder
from tests.runs import tiny_config
from tests.unit.cache.planted import ROW_LENGTH, make_planted, planted_rows

CACHED, VALIDATION = 23, 20


def write_output(folder: Path) -> None:
    """Write config, record, prepared data and a planted cache of a run to `folder`."""
    folder.mkdir(parents=True)
    config = tiny_config(Path("corpus"), str(folder))
    (folder / CONFIG_KEY).write_text(yaml.safe_dump(config))
    stages = {name: {"fingerprint": f"{name}-1"} for name in ("prepare", "cache")}
    (folder / RECORD_KEY).write_text(json.dumps({"stages": stages}))
    make_planted(open_store(str(folder / "cache/cache-1")), CACHED).publish()
    store = open_store(str(folder / "prepared/prepare-1"))
    tokenizer = folder.parent / "tokenizer"
    info = train_tokenizer(["some words for a tokenizer"], 300, tokenizer)
    upload_folder(tokenizer, store, "tokenizer")
    data = DataConfig(seq_len=ROW_LENGTH)
    writer = SplitWriter("causal-lm", data, store, "", info, lambda *_: None)
    splits = {
        name: writer._store_rows(name, [planted_rows(count)], RowCounts(rows=count))
        for name, count in (("train", CACHED), ("validation", VALIDATION))
    }
    manifest = {"format": FORMAT, "version": VERSION, "seq_len": ROW_LENGTH}
    write_manifest(store, {**manifest, "tokenizer": info.as_dict(), "splits": splits})
