"""Charts: points land where they belong, odd series do no harm, everything has words."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest

from kdscale.report.charts import (
    Gap,
    Series,
    bar_chart,
    gap_chart,
    line_chart,
    reliability_chart,
    smooth,
    thin,
)
from kdscale.report.markup import Markup, join, tag
from kdscale.report.svg import Scale, shorten, spread, tick_format, ticks
from tests.unit.report.page import Element, read_page
from tests.unit.report.sample import domain_metrics


def _svg(markup: str) -> Element:
    return read_page(markup).children[0]


def _points(svg: Element) -> list[list[tuple[float, float]]]:
    lines = [line.attributes["points"].split() for line in svg.all("polyline")]
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line)] for line in lines]


def _numbers(markup: str) -> list[str]:
    return re.findall(r'(?:points|x|y|x1|y1|x2|y2|cx|cy|width|height)="([^"]*)"', markup)


def test_tag_escapes_all_but_markup() -> None:
    inner = tag("b", "1 < 2 & 3")
    assert inner == "<b>1 &lt; 2 &amp; 3</b>"
    assert tag("p", inner, None, " <i>", class_='a"b') == (
        '<p class="a&quot;b"><b>1 &lt; 2 &amp; 3</b> &lt;i&gt;</p>'
    )
    assert tag("line", stroke_width=2, x=None) == '<line stroke-width="2"></line>'
    assert join("<", Markup("<br>")) == "&lt;<br>"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2.9, 4.6, [3.0, 3.5, 4.0, 4.5]),
        (10, 200, [50, 100, 150, 200]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low: float, high: float, expected: Any) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("top", [1e-7, 0.03, 1, 7.3, 640, 1e5, 3e12])
def test_ticks_are_few_and_their_labels_differ(top: float) -> None:
    at = ticks(0, top)
    labels = [tick_format(at)(value) for value in at]
    assert 3 <= len(at) <= 7
    assert len(set(labels)) == len(labels)


def test_tick_labels_shorten_thousands() -> None:
    assert [tick_format([0, 50_000])(value) for value in (0, 50_000)] == ["0", "50 k"]
    assert tick_format([0, 500])(500) == "500"
    assert tick_format([2.5, 3.0])(3.0) == "3.0"


def test_spread_is_never_empty() -> None:
    assert spread([2.0, 4.0], 0.1) == pytest.approx((1.8, 4.2))
    for value in (0.0, 3.0, -3.0, 1e-30):
        low, high = spread([value])
        assert low < value < high


def test_a_line_goes_through_its_points() -> None:
    svg = _svg(line_chart("c", "T", [Series("a", "student", [(0, 0.0), (5, 1.0), (10, 0.5)])], "y"))
    ((x0, y0), (x1, y1), (x2, y2)) = _points(svg)[0]
    assert (x0, x2) == (58, 704)
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 < y2 < y0
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.02)


def test_scale_maps_ends_to_ends() -> None:
    scale = Scale(2, 4, 300, 60)
    assert [scale(value) for value in (2, 3, 4)] == [300, 180, 60]


def test_the_first_fall_does_not_flatten_the_rest() -> None:
    points = [(step, 100.0 if step < 10 else 3 + step / 100) for step in range(101)]
    series = [Series("a", "student", points)]
    late = _points(_svg(line_chart("c", "T", series, "y", skip_share=0.1)))[0][-1]
    all_of_it = _points(_svg(line_chart("c", "T", series, "y")))[0][-1]
    assert late[1] < 60
    assert all_of_it[1] > 230


def test_not_finite_values_are_left_out_and_said() -> None:
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    markup = line_chart("c", "T", [Series("loss", "student", points)], "y")
    assert "nan" not in "".join(_numbers(markup)).lower()
    assert "inf" not in "".join(_numbers(markup)).lower()
    assert len(_points(_svg(markup))[0]) == 2
    assert "2 values that are not finite are left out" in _svg(markup).all("desc")[0].text


@pytest.mark.parametrize("kind", ["strong", "plain", "faint"])
def test_a_single_point_is_visible(kind: Any) -> None:
    svg = _svg(line_chart("c", "T", [Series("a", "student", [(10, 3.0)], kind)], "y"))
    assert len(svg.all("circle")) == 1
    assert svg.all("circle")[0].attributes["cx"] == "381.0"


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("a", "student", [])],
        [Series("a", "student", [(1, math.nan)])],
        [Series("a", "teacher", [(0, 3.0)], "level")],
    ],
)
def test_no_points_give_no_chart(series: list[Series]) -> None:
    assert line_chart("c", "T", series, "y") == ""


def test_an_empty_series_is_not_in_the_legend() -> None:
    series = [Series("full", "student", [(0, 1.0), (1, 2.0)]), Series("empty", "baseline", [])]
    series.append(Series("goal", "teacher", [(0, 0.5)], "level"))
    keys = [t.text for t in _svg(line_chart("c", "T", series, "y")).all("text")]
    assert "full" in keys
    assert "goal" in keys
    assert "empty" not in keys


def test_names_stand_where_their_lines_end_and_never_on_each_other() -> None:
    series = [
        Series("high", "student", [(0, 2.0), (1, 1.02)]),
        Series("middle", "baseline", [(0, 2.0), (1, 1.01)]),
        Series("low", "teacher", [(0, 2.0), (1, 1.0)]),
    ]
    svg = _svg(line_chart("c", "T", series, "y"))
    names = [(t.text, float(t.attributes["y"])) for t in svg.all("text") if _is_key(t)]
    assert [name for name, _ in names] == ["high", "middle", "low"]
    heights = [y for _, y in names]
    assert all(after - before >= 15 for before, after in pairwise(heights))
    axis = max(float(e.attributes["y1"]) for e in svg.all("line") if _class(e) == "axis")
    assert heights[-1] <= axis


def test_long_names_go_to_a_legend_above() -> None:
    names = ["a name of twenty-five chars", "b"]
    series = [Series(name, "student", [(0, 1.0), (1, 2.0)]) for name in names]
    keys = [float(t.attributes["y"]) for t in _svg(line_chart("c", "T", series, "y")).all("text")]
    assert sorted(keys)[:2] == [14, 14]


@pytest.mark.parametrize(
    ("label", "short"), [("abc", "abc"), ("abcdef", "abcdef"), ("abcdefg", "ab…efg")]
)
def test_long_labels_lose_their_middle(label: str, short: str) -> None:
    assert shorten(label, 6) == short


def _class(element: Element) -> str:
    return element.attributes.get("class", "")


def _is_key(element: Element) -> bool:
    return _class(element) == "key"


def test_long_series_are_thinned_with_both_ends() -> None:
    points = [(float(i), float(i)) for i in range(10_000)]
    assert len(thin(points)) == 300
    assert (thin(points)[0], thin(points)[-1]) == (points[0], points[-1])
    assert thin(points[:7]) == points[:7]


def test_smoothing_is_a_centred_mean_that_skips_what_is_not_finite() -> None:
    points = [(float(i), float(i % 2)) for i in range(100)]
    inner = smooth(points, 0.05)[2:-2]
    assert [y for _, y in inner] == pytest.approx([0.4 + 0.2 * (i % 2 == 1) for i in range(2, 98)])
    broken = smooth([(0, 1.0), (1, math.nan), (2, 3.0)], 1.0)
    assert [y for _, y in broken][::2] == [1.0, 3.0]
    assert math.isnan(broken[1][1])
    assert smooth([]) == []
    assert smooth([(0, 5.0)]) == [(0, 5.0)]


def test_reliability_has_a_marker_for_each_bin_and_the_error_in_words() -> None:
    scores = {model: domain_metrics(model, "validation") for model in ("teacher", "baseline")}
    svg = _svg(reliability_chart("r", "validation", scores))
    ece = f"{scores['baseline']['ece']:.4f}"
    assert len(svg.all("polygon")) == 15 + 15 + 2
    assert f"baseline: expected calibration error {ece} over 15 bins" in svg.all("desc")[0].text
    assert any(t.text == f"baseline, ECE {ece}" for t in svg.all("text"))


def test_reliability_without_bins_is_empty() -> None:
    metrics = domain_metrics("student", "validation")
    metrics["calibration"] = []
    assert reliability_chart("r", "validation", {"student": metrics}) == ""


@pytest.mark.parametrize("recovered", [-0.4, 0.0, 0.3, 1.0, 1.6])
def test_the_student_stands_between_baseline_and_teacher(recovered: float) -> None:
    svg = _svg(gap_chart("g", [Gap("d", 3.0, 4.0 - recovered, 4.0, recovered)]))
    corners = [p.attributes["points"].split() for p in svg.all("polygon")]
    baseline, teacher = (sum(float(c.split(",")[0]) for c in p) / len(p) for p in corners)
    student = float(svg.all("circle")[0].attributes["cx"])
    assert (student - baseline) / (teacher - baseline) == pytest.approx(recovered, abs=0.002)
    assert f"student {4 - recovered:.4f}" in svg.all("desc")[0].text


def test_bars_are_proportional_and_labelled() -> None:
    svg = _svg(bar_chart("b", "T", {"a": 2.0, "b": 4.0, "c": math.nan}, lambda v: f"{v:g} s"))
    widths = [float(r.attributes["width"]) for r in svg.all("rect")]
    assert widths == [240, 480]
    assert [t.text for t in svg.all("text")] == ["a", "2 s", "b", "4 s"]
    assert bar_chart("b", "T", {}, str) == ""
