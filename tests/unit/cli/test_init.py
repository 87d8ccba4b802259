"""`kdscale init`: the quickstart as a short config, or with every field explained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.cli import main
from kdscale.config import dump_config, load_config, parse_config
from kdscale.config.starter import starter_yaml

QUICKSTART = Path(__file__).parents[3] / "jobs" / "configs" / "quickstart.yaml"


def keys(tree: Any, prefix: str = "") -> set[str]:
    if not isinstance(tree, dict):
        return set()
    paths = {f"{prefix}{name}" for name in tree}
    return paths.union(*(keys(value, f"{prefix}{name}.") for name, value in tree.items()))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize("full", [False, True])
def test_starter_is_the_quickstart(full: bool) -> None:
    starter, quickstart = parse_config(starter_yaml(full)), load_config(QUICKSTART)
    same = {"name": quickstart.name, "output": quickstart.output}
    assert starter.model_copy(update=same) == quickstart


def test_the_short_one_is_short() -> None:
    assert len(starter_yaml().splitlines()) < 60
    assert "--full" in starter_yaml().splitlines()[0]


def test_every_field_is_there() -> None:
    text = starter_yaml(full=True)
    written = keys(yaml.safe_load(text))
    of_models = keys(yaml.safe_load(dump_config(parse_config(text))))
    # The evaluation set leaves out the defaults of its source.
    missing = {key for key in of_models - written if not key.startswith("data.evaluate.")}
    assert missing == set()
    assert {"distill.curriculum.warmup_share", "cache.codec.head_bits"} <= written


def test_comments_come_from_the_fields() -> None:
    lines = starter_yaml(full=True).splitlines()
    seed = lines.index("seed: 0")
    assert lines[seed - 1] == "# Seed of initial weights, data order, dropout and sampling."
    order = lines.index("    order: easy")
    assert lines[order - 1].endswith("One of easy, hard, random.")
    prose = [line for line in lines if line.lstrip().startswith("#")]
    assert max(map(len, prose)) <= 100


def test_init_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "mine.yaml"
    assert run("init", str(path)) == 0
    assert path.read_text() == starter_yaml()
    assert run("init", "--full", str(tmp_path / "full.yaml")) == 0
    assert (tmp_path / "full.yaml").read_text() == starter_yaml(full=True)
    path.write_text("mine")
    assert run("init", str(path)) == 2
    assert path.read_text() == "mine"
    assert f"error: {path} already exists." in capsys.readouterr().err
