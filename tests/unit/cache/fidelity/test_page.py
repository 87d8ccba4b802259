"""The page of an audit: well-formed, without requests, one marker a codec."""

import math
import re
from dataclasses import replace
from html import unescape

import pytest

from kdscale.cache.fidelity.audit import Audit, audit
from kdscale.cache.fidelity.page import ROLES, render_audit
from kdscale.cache.fidelity.tables import advice, audit_table, proof_sentence
from tests.unit.cache.fidelity.conftest import AuditedRun
from tests.unit.report.page import Element, read_page


@pytest.fixture(scope="module")
def found(run: AuditedRun) -> Audit:
    return audit(run.cache.store, rows=6, draws=2, say=lambda line: None)


def charts(page: str) -> dict[str, Element]:
    """Return the drawings by their id; parsing is strict."""
    return {svg.attributes["id"]: svg for svg in read_page(page).all("svg")}


def tips(chart: Element) -> list[str]:
    return [title.text for title in chart.all("title")[1:]]


def test_every_codec_has_a_marker_and_a_row(found: Audit) -> None:
    page = render_audit(found)
    drawn = charts(page)
    assert set(drawn) == {"error", "variance"}
    kept = [codec for codec in found.codecs if codec.config.kind != "full"]
    assert len(tips(drawn["error"])) == len(kept)
    random = [codec for codec in kept if codec.fidelity.variance > 0]
    assert len(tips(drawn["variance"])) == len(random) < len(kept)
    assert {"this cache", "recommended"} <= {text.text for text in drawn["error"].all("text")}
    assert len(read_page(page).all("tr")) == 1 + len(found.codecs)


def test_markers_fall_on_logarithmic_axes(found: Audit) -> None:
    chart = charts(render_audit(found))["error"]
    places = {}
    for group in chart.all("g"):
        for tip in group.all("title") if group.attributes.get("class", "")[:4] == "mark" else ():
            stored = float(tip.text.split(": ")[1].split(" B")[0])
            places[stored] = float(group.all("use")[0].attributes["x"])
    ordered = sorted(places.items())
    assert len(ordered) > 4
    (low, x_low), (high, x_high) = ordered[0], ordered[-1]
    for stored, x in ordered[1:-1]:
        share = math.log(stored / low) / math.log(high / low)
        # The tip's bytes are rounded to a tenth.
        assert x == pytest.approx(x_low + share * (x_high - x_low), abs=12)


def test_the_page_asks_for_nothing(found: Audit) -> None:
    page = render_audit(replace(found, cache="s3://bucket/<script>"))
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
