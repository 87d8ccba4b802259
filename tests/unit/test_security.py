"""What is read from storage can neither run code nor lead out of its place (docs/security.md)."""

import ast
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.cache.format.records import Commit, ManifestRecord, Record, read_record
from kdscale.errors import KdscaleError
from kdscale.models.load import load_config_of, load_model
from kdscale.store import Store, download_folder, open_store
from kdscale.store.local import LocalStore
from kdscale.train.checkpoint import _restore_random_state

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kdscale"


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place, dotted name, constant keywords) of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {
                    k.arg: k.value.value
                    for k in node.keywords
                    if k.arg and isinstance(k.value, ast.Constant)
                }
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield place, ast.unparse(node.func), keywords


def test_nothing_that_runs_code_is_called() -> None:
    loaders = r"(pickle|dill|cloudpickle|joblib|marshal|shelve)\."
    banned = re.compile(
        rf"({loaders}.*|eval|exec|os\.(system|popen)|yaml\.(load|unsafe_load|full_load).*)$"
    )
    found = {(place.split(":")[0], name) for place, name, _ in calls() if banned.match(name)}
    # The probe copies its own store, in memory.
    probe = "kdscale/store/probe.py"
    assert found == {(probe, "pickle.loads"), (probe, "pickle.dumps")}
    assert not [place for place, _, keywords in calls() if keywords.get("shell")]


def test_every_loader_is_told_to_run_no_code() -> None:
    seen = set()
    for place, name, keywords in calls():
        last = name.rpartition(".")[2]
        if name.startswith("Auto") and last in ("from_pretrained", "from_config"):
            assert keywords.get("trust_remote_code") is False, place
        if name.startswith("AutoModel") and last == "from_pretrained":
            assert keywords.get("use_safetensors") is True, place
        if name == "torch.load":
            assert keywords.get("weights_only") is True, place
        if name == "np.load":
            assert keywords.get("allow_pickle") is False, place
        seen.add(last)
    assert {"from_pretrained", "from_config", "load"} <= seen


class Evil:
    """What a pickle of it does when it is loaded: it makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_the_evil_pickle_works_where_it_is_trusted(tmp_path: Path) -> None:
    # Guards the tests below.
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_checkpoint_with_pickled_code_is_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "random-0.pt"
    torch.save({"cpu": Evil(mark)}, path)
    with pytest.raises(KdscaleError, match="holds more than tensors"):
        _restore_random_state(path)
    assert not mark.exists()


def write_model(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    shape = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    (folder / "config.json").write_text(json.dumps(shape | fields))
    return folder


def test_a_model_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    mark, folder = tmp_path / "ran", write_model(tmp_path / "model")
    torch.save({"weight": Evil(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(KdscaleError, match="safetensors"):
        load_model(folder)
    assert not mark.exists()


def test_the_code_of_a_model_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    folder = write_model(tmp_path / "model", model_type="unheard-of", auto_map=own)
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    for load in (load_config_of, load_model):
        with pytest.raises(KdscaleError, match="No model can be loaded"):
            load(folder)
    assert not mark.exists()


class Lying(LocalStore):
    """A bucket whose listing has a name that leads out of it."""

    def list(self, prefix: str = "") -> list[str]:
        return ["fine", "../../escaped"]


def test_a_listing_cannot_make_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "fine").write_text("fine")
    (tmp_path.parent / "escaped").unlink(missing_ok=True)
    target = tmp_path / "a" / "b"
    with pytest.raises(KdscaleError, match="leads out of it"):
        download_folder(Lying(str(tmp_path)), "model", target)
    assert not (tmp_path / "escaped").exists()


ELSEWHERE = ["../" * 4 + "etc/passwd", "/etc/passwd", "s3://other/data", "..", "", "0" * 31 + "/"]
SHARD = {
    "shard": 0,
    "digest": "0" * 32,
    "length": 1,
    "index_digest": "0" * 32,
    "index_length": 1,
    "rows": 1,
    "targets": 1,
}


def write(store: Store, record: dict[str, Any]) -> str:
    # Without a checksum, which whoever forges a record can compute as well.
    store.put("record.json", json.dumps(record).encode())
    return "record.json"


def refused(store: Store, kind: type[Record], record: dict[str, Any]) -> None:
    with pytest.raises(KdscaleError, match="not a valid record"):
        read_record(kind, store, write(store, record))


@pytest.mark.parametrize("path", ELSEWHERE)
def test_records_of_a_cache_name_nothing_outside(path: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    commit = SHARD | {"attempt": "a", "seconds": 1.0}
    assert read_record(Commit, store, write(store, commit)).object.startswith("data/000000-")
    refused(store, Commit, commit | {"digest": path})
    refused(store, Commit, commit | {"index_digest": path})
    refused(store, Commit, commit | {"shard": path})
    # Nor can a record say where its objects lie.
    refused(store, Commit, commit | {"object": path})


@pytest.mark.parametrize("path", ELSEWHERE)
def test_manifests_name_nothing_outside(path: str, tmp_path: Path) -> None:
    from kdscale.cache.spec import FORMAT
    from kdscale.config import fingerprint

    store = open_store(str(tmp_path))
    prior = {"digest": "0" * 32, "length": 1}
    generation = {"first_shard": 0, "first_row": 0, "rows": 1, "sequences_per_shard": 1}
    generation |= {"sequences_per_chunk": 1, "data": "d", "request": "0" * 32, "prior": prior}
    manifest: dict[str, Any] = {"format": FORMAT, "version": 1, "identity": {}, "created": "now"}
    manifest |= {"fingerprint": fingerprint({}), "generations": [generation], "shards": prior}
    assert read_record(ManifestRecord, store, write(store, manifest)).shards_key.startswith(
        "manifests/shards-"
    )
    elsewhere = prior | {"digest": path}
    refused(store, ManifestRecord, manifest | {"shards": elsewhere})
    refused(store, ManifestRecord, manifest | {"generations": [generation | {"prior": elsewhere}]})
    refused(store, ManifestRecord, manifest | {"url": path})
