"""`kdscale cache audit`: the table, the JSON, the page, the exit code."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from kdscale.cli.audit import audit
from kdscale.errors import KdscaleError
from tests.unit.cache.fidelity.conftest import AuditedRun

app = typer.Typer()
app.command()(audit)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--seeds", "2"])


def test_table_and_page(run: AuditedRun, tmp_path: Path) -> None:
    page = tmp_path / "audit.html"
    result = call(run.url, "--rows", "6", "--budget", "8", "--out", str(page))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("codec")
    own = next(line for line in lines if line.startswith(("* ", ">* ")))
    assert "varopt k=6 head=3 head_bits=8" in own
    assert "Encoded again, all" in result.stdout
    assert "within 8.0 stored bytes per token" in result.stdout
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_json(run: AuditedRun) -> None:
    result = call(run.url, "--rows", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cache"] == run.url
    assert found["rows"] == 4
    assert found["own"]["codec"]["k"] == 6
    assert found["own"] in found["codecs"]
    assert found["own"]["bytes_stored"] == pytest.approx(found["budget"])
    assert [d["positions"] for d in found["own"]["directions"]] == [1, found["own"]["positions"]]


def test_exit_code_of_a_cache_that_does_not_agree(misaligned: AuditedRun) -> None:
    result = call(misaligned.url, "--rows", "4")
    assert result.exit_code == 1
    assert "does not agree" in result.stdout


def test_no_cache(tmp_path: Path) -> None:
    result = call(str(tmp_path))
    assert isinstance(result.exception, KdscaleError)
