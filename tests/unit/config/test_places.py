"""Paths of a config: all fields of the type Place, by type, wherever they are nested."""

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Discriminator, Field, Tag

from kdscale.config import RunConfig, dump_config
from kdscale.config.base import Config, Place, PlaceForm
from kdscale.config.data import DataConfig
from kdscale.config.places import map_places, resolve_places, without_folders
from kdscale.data.prepare import data_identity
from kdscale.run.artifacts import resolve_paths


class Inner(Config):
    where: Place = "inner"
    other: str = "text"


class Chosen(Config):
    kind: str
    folder: Place


class Outer(Config):
    one: Place
    bounded: Place | None = Field(default=None, min_length=1)
    either: Place | tuple[Inner, ...] | None = None
    pair: tuple[int, Place] = (1, "second")
    several: list[Place] = []
    named: dict[str, Place] = {}
    nested: dict[str, tuple[Inner, ...]] = {}
    union: Annotated[
        Annotated[Inner, Tag("inner")] | Annotated[tuple[Chosen, ...], Tag("chosen")],
        Discriminator(lambda value: "chosen" if isinstance(value, list | tuple) else "inner"),
    ] = Inner()
    plain: str = "plain"
    words: tuple[str, ...] = ("a",)
    tree: dict[str, Any] = {"path": "x"}


def test_every_place_is_found_by_its_type() -> None:
    config = Outer.model_validate(
        {
            "one": "a",
            "bounded": "b",
            "either": [{"where": "c"}, {}],
            "several": ["d", "e"],
            "named": {"x": "f"},
            "nested": {"y": [{"where": "g"}]},
            "union": [{"kind": "k", "folder": "h"}],
        }
    )
    seen: list[tuple[str, str]] = []

    def change(field: str, value: str, form: PlaceForm) -> str:
        assert form == "path"
        seen.append((field, value))
        return value.upper()

    made = map_places(config, change)
    assert seen == [
        ("one", "a"),
        ("bounded", "b"),
        ("either.0.where", "c"),
        ("either.1.where", "inner"),
        ("pair.1", "second"),
        ("several.0", "d"),
        ("several.1", "e"),
        ("named.x", "f"),
        ("nested.y.0.where", "g"),
        ("union.0.folder", "h"),
    ]
    text = made.model_dump_json()
    for value in "ABCDEFGH":
        assert f'"{value}"' in text
    assert (made.plain, made.words, made.tree) == ("plain", ("a",), {"path": "x"})
    assert Outer.model_validate(made.model_dump()) == made
    string = Outer(one="s3://b/a", either="s3://b/c", pair=(1, "/x"), union=Inner(where="/y"))
    assert resolve_places(string)[0] is string


RUN: dict[str, Any] = {
    "name": "demo",
    "output": "PATH/out",
    "base": "PATH/base",
    "data": {
        "train": [
            {"kind": "text", "path": "PATH/a/*.txt"},
            {"kind": "huggingface", "path": "PATH/saved"},
        ],
        "evaluate": {"law": {"kind": "jsonl", "path": "PATH/law"}},
        "tokenizer": {"kind": "teacher"},
        "augment": {"steps": [{"kind": "replace", "table": "PATH/words.tsv"}]},
        "chat": {"template": "PATH/chat.jinja"},
        "cleaning": [],
    },
    "teacher": {"load": "PATH/teacher"},
    "cache": {"reuse": [{"url": "PATH/cache"}]},
    "distill": {
        "student": {"load": "PATH/student"},
        "training": {"steps": 2, "global_batch_size": 2},
        "cache_folder": "PATH/blocks",
    },
    "evaluate": {"models": {"other": "PATH/other"}},
}


def config(prefix: str, **changes: Any) -> RunConfig:
    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(item) for name, item in value.items()}
        if isinstance(value, list):
            return [placed(item) for item in value]
        return value.replace("PATH", prefix) if isinstance(value, str) else value

    tree = placed({**RUN, **changes})
    del tree["data"]["augment"], tree["data"]["train"][0]
    return RunConfig.model_validate(tree)


def test_a_run_has_absolute_paths_in_all_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = dump_config(resolve_paths(config("./here")))
    assert len(re.findall(f"{tmp_path}/here/", text)) == text.count("here/") == 10


def test_a_name_is_a_path_where_a_folder_of_that_name_exists(tmp_path: Path) -> None:
    for name in ("teacher", "student", "other", "saved"):
        (tmp_path / "org" / name).mkdir(parents=True)
    made, found = resolve_places(config("org"), tmp_path)
    assert made.teacher.load == f"{tmp_path}/org/teacher"
    assert made.distill.student.load == f"{tmp_path}/org/student"
    assert made.evaluate.models == {"other": f"{tmp_path}/org/other"}
    assert made.data.sources["train"][0].path == f"{tmp_path}/org/saved"
    assert {place.form for place in found} == {"path", "hub", "node"}
    assert all(place.is_relative for place in found)


def test_hub_names_urls_and_templates_in_the_config_stay(tmp_path: Path) -> None:
    given = config("org", data={**RUN["data"], "chat": {"template": "{{ messages }}"}})
    made, _ = resolve_places(given, tmp_path)
    assert made.teacher.load == "org/teacher"
    assert made.distill.student.load == "org/student"
    assert made.evaluate.models == {"other": "org/other"}
    assert made.data.sources["train"][0].path == "org/saved"
    assert made.data.chat == given.data.chat
    remote = config("s3://bucket")
    assert resolve_places(remote, tmp_path) == (remote, [])


def test_the_identity_of_data_does_not_depend_on_the_folder_they_are_in(tmp_path: Path) -> None:
    (tmp_path / "one" / "corpus").mkdir(parents=True)
    (tmp_path / "one" / "corpus" / "a.txt").write_text("text")
    corpus = {"kind": "text", "path": f"{tmp_path}/one/corpus"}
    source = DataConfig.model_validate({"train": corpus})
    before = data_identity(source)
    (tmp_path / "one").rename(tmp_path / "two")
    moved = map_places(source, lambda _, value, __: value.replace("/one/", "/two/"))
    assert data_identity(moved) == before
    assert without_folders(moved).sources["train"][0].path == "corpus"
