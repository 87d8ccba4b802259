"""The README names every file and every command, and nothing that is not there."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdscale.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_file_tree_is_complete() -> None:
    tree = README[README.index("## The files") :]
    listed: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        name = line.strip().split(" ")[0]
        if re.fullmatch(r"    [\w./-]+/", line):
            folder = name
        elif line.startswith("      ") and name:
            listed.add(folder + name)
    tracked = subprocess.run(
        ["git", "ls-files", "kdscale", "jobs", "cluster", "benchmarks", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    files = {name for name in tracked if not name.endswith("__init__.py")}
    if not files:
        pytest.skip("not a git checkout")
    assert files - listed == set(), "add a line for each to README.md"
    assert {name for name in listed if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^    kdscale ([\w-]+)", README, re.M))))
def test_every_command_named_exists(command: str) -> None:
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
