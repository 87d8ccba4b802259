"""README and docs name only what exists: links, files, commands, options, targets, fields."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from kdscale.cli import app
from kdscale.config import RunConfig, parse_config
from kdscale.config.renamed import RENAMED
from kdscale.store import open_store
from tests.architectures import tiny_model
from tests.pages import ALL_PAGES, PAGES, README, ROOT, blocks, commands, prose
from tests.unit.cache.planted import VOCAB, make_planted

names = pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in found}


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return found


def test_the_readmes_figures_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    gaps = {row["arm"]: row.get("gap_closed_kl") for row in result("quality")["rows"]}
    assert f"{gaps['varopt-24']:.1%} at 24 bytes" in text
    assert f"50 draws: {gaps['sample-50']:.1%} at 61 bytes; top-50: {gaps['topk-50']:.1%}" in text
    goals = {goal["name"]: goal["value"] for goal in result("step_cost")["goals"]}
    assert f"| {goals['step_over_cross_entropy']:.2f}× |" in text
    assert f"online teacher: {goals['online_teacher_over_step']:.1f}×" in text
    loss = {row["arm"]: row for row in result("loss")["rows"] if row["vocab_size"] == 49152}
    assert f"| {loss['kdscale']['peak_mib']:,.0f} MiB |" in text
    assert f"| {loss['kdscale']['seconds']['median']:.1f} s |" in text
    for arm in ("Liger-Kernel, compiled", "DistillKit, bucket", "TRL"):
        name = arm.removesuffix(", bucket").replace(",", "")
        assert f"{name} {loss[arm]['peak_mib']:,.0f}" in text
        assert f"{name} {loss[arm]['seconds']['median']:.1f}" in text


@names
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target) or path.startswith("reference/"):
            continue  # on the web, or generated when the site is built
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in heading_anchors(file), target


@names
def test_files_named_exist(page: Path) -> None:
    folders = "kdscale|benchmarks|tests|jobs|cluster|docs"
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*[\w/])", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_guided_tour_is_eight_files_and_under_1500_lines() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tour = page[page.index("## Guided tour") : page.index("## Packages")]
    files = [ROOT / path for path in re.findall(r"^\| `([\w/]+\.py)`", tour, re.M)]
    assert len(files) == 8
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < 1500


@names
def test_code_is_fenced_with_a_language_and_lines_are_wrapped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    openings = re.findall(r"^ *```(.*)$", text, re.M)[::2]
    assert all(openings), "a fence without a language"
    plain = [line for line in prose(page).splitlines() if not line.startswith(("|", "**"))]
    assert [line for line in plain if len(line) > 125 and "](" not in line] == []
    if page.name != "results.md":
        assert not re.search(r"\n\n    \S", prose(page)), "an indented code block"


@pytest.mark.parametrize("command", sorted(set(commands(*ALL_PAGES))))
def test_commands_and_their_options_exist(command: str) -> None:
    known: Any = typer.main.get_command(app)
    words = command.split()[1:]
    while hasattr(known, "commands") and words and not words[0].startswith("-"):
        word = words.pop(0)
        assert word in known.commands or word.isupper(), command
        known = known.commands.get(word, known)
    options = {name for each in known.params for name in (*each.opts, *each.secondary_opts)}
    for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(words)):
        assert word in options | {"--help"}, command


def test_errors_in_the_troubleshooting_page_are_raised_by_the_code() -> None:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in ROOT.glob("kdscale/**/*.py")]
    nodes = (node for tree in trees for node in ast.walk(tree))
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    raised = "\n".join(text for text in constants if isinstance(text, str))
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    quoted = re.findall(r'"([^"]+)"', "\n".join(symptoms))
    assert len(quoted) > 10
    assert [text for text in quoted if text not in raised] == []


def test_the_changelog_and_the_config_know_the_same_old_keys() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    table = re.findall(r"^  \| (`[^|]+) \|", text, re.M)
    listed = {key for row in table for key in re.findall(r"`([^`: ]+)`", row)}
    renamed = {re.sub(r"^(teacher|distill)\.training", "*.training", key) for key in RENAMED}
    assert listed == renamed


@pytest.mark.parametrize("page", [*ALL_PAGES, ROOT / ".github/workflows/ci.yml"], ids=str)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    code = re.findall(r"(?:`|^|run: )make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M)
    for target in code:
        assert re.search(rf"^{target}:", makefile, re.M), target


def fragments() -> list[Any]:
    """Return the YAML blocks that are a config or a part of one."""
    found = [(page.name, text) for page in PAGES for text in blocks(page, "yaml")]
    found = [(name, text) for name, text in found if set(yaml.safe_load(text)) <= _FIELDS]
    assert len(found) > 10
    return [pytest.param(text, id=f"{name}-{number}") for number, (name, text) in enumerate(found)]


_FIELDS = set(RunConfig.model_fields)
_LAYERS = {"teacher_layers": [0]}
_BASE: dict[str, Any] = {
    "name": "docs",
    "output": "runs/docs",
    "data": {"tokenizer": {"kind": "teacher"}},
    "teacher": {"load": "teacher"},
    "distill": {"student": _LAYERS, "training": {"steps": 1, "global_batch_size": 8}},
}


def merged(below: Any, above: Any) -> Any:
    """Return `above` with what it leaves out taken from `below`."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys()}
    return below | above | both


@pytest.mark.parametrize("text", fragments())
def test_pieces_of_config_are_valid(text: str) -> None:
    given = yaml.safe_load(text)
    tree = merged(_BASE, given)
    if "student" in given.get("distill", {}):
        tree["distill"]["student"] = given["distill"]["student"]
    if "codec" not in given.get("cache", {}) and given.get("task") == "sequence-classification":
        tree |= {"cache": {"codec": {"kind": "full"}}}
    RunConfig.model_validate(tree)


def test_the_readmes_run_is_a_whole_config() -> None:
    (text,) = blocks(README, "yaml")
    assert len(text.splitlines()) <= 30
    assert parse_config(text).teacher.load


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, read = blocks(README, "python")
    assert len((launch + read).splitlines()) <= 16

    (tmp_path / "run.yaml").write_text(blocks(README, "yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    launched = []
    monkeypatch.setattr("kdscale.run.pipeline.run_pipeline", launched.append)
    exec(launch, {})
    assert launched[0].distill.training.steps == 500

    cache = make_planted(open_store(str(tmp_path / "cache")), rows=16).publish()
    model = tiny_model("llama", vocab_size=VOCAB)
    scope: dict[str, Any] = {"model": model}
    exec(re.sub(r'"s3://[^"]*"', repr(cache.store.url), read), scope)
    assert scope["loss"] > 0
    assert all(each.grad is not None for each in model.parameters())


def test_the_cache_pages_python_runs(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "cache.md", "python")
    cache = make_planted(open_store(str(tmp_path / "cache")), rows=16).publish()
    scope: dict[str, Any] = {}
    exec(text.replace("runs/quickstart/cache/FINGERPRINT", cache.store.url), scope)
    assert scope["step"] == 999
    assert scope["rows"].input_ids.shape == scope["targets"].probs.shape[:2]
