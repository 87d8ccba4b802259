"""The page of an audit: well-formed, without requests, one marker a codec."""

import math
import re
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree

import pytest

from kdscale.cache.fidelity.audit import Audit, audit
from kdscale.cache.fidelity.page import ROLES, render_page
from kdscale.cache.fidelity.tables import advice, audit_table, proof_sentence
from tests.unit.cache.fidelity.conftest import AuditedRun


@pytest.fixture(scope="module")
def found(run: AuditedRun) -> Audit:
    return audit(run.cache.store, rows=6, draws=2, say=lambda line: None)


def charts(page: str) -> dict[str, ElementTree.Element]:
    """The drawings by their id; parsing is strict."""
    found = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    trees = [ElementTree.fromstring(svg) for svg in found]
    return {tree.attrib["id"]: tree for tree in trees}


def names(chart: ElementTree.Element) -> set[str]:
    nodes = (n for n in chart.iter() if n.attrib.get("class", "").startswith("strong"))
    return {node.text or "" for node in nodes}


def tips(chart: ElementTree.Element) -> list[str]:
    return [
        title.text or ""
        for mark in chart.iter()
        if "mark" in mark.attrib.get("class", "").split()
        for title in mark.findall("title")
    ]


def test_every_codec_has_a_marker_and_a_row(found: Audit) -> None:
    page = render_page(found)
    drawn = charts(page)
    assert set(drawn) == {"error", "variance"}
    kept = [codec for codec in found.codecs if codec.config.kind != "full"]
    assert len(tips(drawn["error"])) == len(kept)
    random = [codec for codec in kept if codec.fidelity.variance > 0]
    assert len(tips(drawn["variance"])) == len(random) < len(kept)
    assert names(drawn["error"]) == {"this cache", "recommended"}
    assert page.count("<tr>") == 1 + len(found.codecs)


def test_markers_fall_on_logarithmic_axes(found: Audit) -> None:
    chart = charts(render_page(found))["error"]
    ticks = {
        (node.text or ""): float(node.attrib["x"])
        for node in chart.iter()
        if node.attrib.get("class") == "tick middle"
    }
    places = sorted((float(value), x) for value, x in ticks.items())
    assert len(places) > 2
    (low, x_low), (high, x_high) = places[0], places[-1]
    for value, x in places[1:-1]:
        share = math.log(value / low) / math.log(high / low)
        assert x == pytest.approx(x_low + share * (x_high - x_low), abs=0.1)


def test_the_page_asks_for_nothing(found: Audit) -> None:
    page = render_page(replace(found, cache="s3://bucket/<script>"))
    assert "<script>" not in page
    assert "default-src 'none'" in unescape(page)
    assert re.findall(r'(?:src|href)="(?!data:,|#)', page) == []
    assert "prefers-color-scheme: dark" in page


def test_every_family_has_a_role(found: Audit) -> None:
    assert {codec.config.kind for codec in found.codecs} == set(ROLES)


def test_table_marks_own_and_recommended(found: Audit) -> None:
    table = audit_table(found)
    assert {len(row) for row in table.rows} == {len(table.header)}
    marks = [mark for row in table.rows if (mark := row[0].partition(" ")[0]).strip(">*") == ""]
    assert sorted(marks) in (["*", ">"], [">*"])


def test_sentences(found: Audit) -> None:
    assert proof_sentence(found).startswith("Encoded again, all")
    near = {**found.proof, "differing": 3, "ids_in_common": 0.97}
    assert "other hardware" in proof_sentence(replace(found, proof=near))
    far = {**found.proof, "differing": 90, "ids_in_common": 0.4}
    assert "does not agree" in proof_sentence(replace(found, proof=far))
    assert "cache:\n  codec: {kind:" in advice(found)
    assert advice(replace(found, recommended=None)).startswith("No codec")
