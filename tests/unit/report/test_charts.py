"""Charts: points land where they belong, odd series do no harm, everything has words."""

import math
import re
from typing import Any

import pytest

from kdscale.report.charts import (
    PALETTE,
    Gap,
    Note,
    bar_chart,
    dot_chart,
    gap_chart,
    line_chart,
    reliability_chart,
)
from kdscale.report.compare import Dots
from kdscale.report.curves import Series, smooth, thin
from tests.unit.report.page import Element, read_page
from tests.unit.report.sample import domain_metrics

Place = tuple[float, float]


def _svg(markup: str) -> Element:
    return read_page(markup).children[0]


def _marks(svg: Element, role: str = "student") -> list[Place]:
    """Return where a model's markers are, in pixels."""
    groups = [g for g in svg.all("g") if g.attributes.get("class") == f"mark {role}"]
    uses = [use for group in groups for use in group.all("use")]
    return [(float(use.attributes["x"]), float(use.attributes["y"])) for use in uses]


def _line(svg: Element, kind: str = "strong student") -> list[Place]:
    """Return the corners of a line, in pixels."""
    (group,) = (g for g in svg.all("g") if g.attributes.get("class") == f"series {kind}")
    numbers = re.findall(r"-?[\d.]+", group.all("path")[0].attributes["d"])
    return list(zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True))


def _texts(svg: Element) -> list[str]:
    return [text.text for text in svg.all("text")]


def test_a_line_goes_through_its_points() -> None:
    svg = _svg(line_chart("c", "T", [Series("a", "student", [(0, 0.0), (5, 1.0), (10, 0.5)])], "y"))
    (x0, y0), (x1, y1), (x2, y2) = _line(svg)
    assert _marks(svg) == [(x0, y0), (x1, y1), (x2, y2)]
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.02)
    assert y1 < y2 < y0
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.02)
    assert {"y", "optimiser step"} <= set(_texts(svg))


def test_colours_follow_the_readers_scheme() -> None:
    markup = line_chart("c", "T", [Series("a", "student", [(0, 0.0), (5, 1.0)])], "y")
    assert "stroke: var(--student)" in markup
    assert not any(color in markup for color in PALETTE.values())
    assert "font-family" not in markup
    for text in _svg(markup).all("text"):
        assert re.search(r"fill: var\(--(ink|soft)\)", text.attributes["style"])


def test_identifiers_are_a_charts_own() -> None:
    series = [Series("a", "student", [(0, 0.0), (5, 1.0)])]
    one, other = (line_chart(name, "T", series, "y") for name in ("one", "other"))
    ids = [re.findall(r' id="([^"]*)"', markup) for markup in (one, other)]
    assert set(ids[0]).isdisjoint(ids[1])
    assert len(set(ids[0])) == len(ids[0])
    assert line_chart("one", "T", series, "y") == one  # the same drawing each time


@pytest.mark.parametrize("evil", ["$x^2$", '<b>&"', "|\\", "\u4e2d\u6587"])
def test_names_are_shown_as_they_are(evil: str) -> None:
    series = [Series(evil, "student", [(0, 0.0)]), Series("b", "baseline", [(0, 1.0)])]
    svg = _svg(line_chart("c", evil, series, evil))
    assert {evil, "b"} <= set(_texts(svg))
    assert svg.all("title")[0].text == evil
    assert not svg.all("b")


def test_the_first_fall_does_not_flatten_the_rest() -> None:
    points = [(step, 100.0 if step < 10 else 3 + step / 100) for step in range(101)]
    series = [Series("a", "student", points)]
    late = _line(_svg(line_chart("c", "T", series, "y", skip_share=0.1)))[-1]
    all_of_it = _line(_svg(line_chart("c", "T", series, "y")))[-1]
    assert late[1] < 60
    assert all_of_it[1] > 200


def test_not_finite_values_are_left_out_and_said() -> None:
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    svg = _svg(line_chart("c", "T", [Series("loss", "student", points)], "y"))
    assert len(_line(svg)) == len(_marks(svg)) == 2
    assert "2 values that are not finite are left out" in svg.all("desc")[0].text


@pytest.mark.parametrize("kind", ["strong", "plain", "faint"])
def test_a_single_point_is_visible(kind: Any) -> None:
    svg = _svg(line_chart("c", "T", [Series("a", "student", [(10, 3.0)], kind)], "y"))
    ((x, _),) = _marks(svg)
    assert 300 < x < 460


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


def test_the_legend_names_what_is_drawn_once() -> None:
    series = [
        Series("full", "student", [(0, 1.0), (1, 2.0)]),
        Series("more of it", "student", [(0, 1.0), (1, 3.0)], label="full"),
        Series("behind", "student", [(0, 1.0), (1, 2.0)], "faint"),
        Series("empty", "baseline", []),
        Series("goal", "teacher", [(0, 0.5)], "level"),
    ]
    keys = _texts(_svg(line_chart("c", "T", series, "y")))
    assert [name for name in keys if name.isalpha() and name != "y"] == ["full", "goal"]


def test_long_names_get_rows_of_the_legend() -> None:
    heights = []
    for length in (5, 60):
        names = ["a" * length, "b" * length, "c" * length]
        series = [Series(name, "student", [(0, 1.0), (1, 2.0)]) for name in names]
        svg = _svg(line_chart("c", "T", series, "y"))
        heights.append(float(svg.attributes["height"]))
    assert heights[1] - heights[0] == 40


def test_only_the_last_of_many_points_has_a_marker_but_hovering_shows_their_values() -> None:
    points = [(step, step / 7) for step in range(100)]
    svg = _svg(line_chart("c", "T", [Series("a", "student", points)], "y"))
    assert len(_line(svg)) == 100
    assert len(_marks(svg)) == 1
    tips = [title.text for title in svg.all("title")[1:]]
    assert tips[-1] == "a, 99: 14.14"
    assert len(tips) == 17
    assert tips[:2] == ["a, 0: 0", "a, 7: 1"]
    places = [g for g in svg.all("g") if g.attributes.get("class") == "tip"]
    # Nothing is seen of them, but they are there to be hovered over.
    assert len(places) == 16
    for place in places:
        (use,) = place.all("use")
        assert use.attributes["style"] == "fill-opacity: 0.001"


def test_both_axes_can_be_logarithmic() -> None:
    points = [(1, 100.0), (10, 10.0), (100, 1.0)]
    series = [Series("a", "student", points, tips=["one", "two", "three"])]
    note = Note("here", "student", 10, 10.0)
    svg = _svg(line_chart("c", "T", series, "y", log=True, notes=[note], description="Falls."))
    marks = _marks(svg)
    assert marks[1][0] - marks[0][0] == pytest.approx(marks[2][0] - marks[1][0], abs=0.03)
    assert marks[1][1] - marks[0][1] == pytest.approx(marks[2][1] - marks[1][1], abs=0.03)
    assert marks[3] == marks[1]
    assert {"1", "2", "5", "10", "20", "50", "100", "here"} <= set(_texts(svg))
    assert svg.all("desc")[0].text == "Falls."
    assert [title.text for title in svg.all("title")[1:]] == ["one", "two", "three"]


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
    assert (len(_marks(svg, "teacher")), len(_marks(svg, "baseline"))) == (15, 15)
    assert f"baseline: expected calibration error {ece} over 15 bins" in svg.all("desc")[0].text
    assert f"baseline, ECE {ece}" in _texts(svg)


def test_reliability_without_bins_is_empty() -> None:
    metrics = domain_metrics("student", "validation")
    scores = {"teacher": domain_metrics("teacher", "validation"), "student": metrics}
    metrics["calibration"] = []
    assert len(_marks(_svg(reliability_chart("r", "validation", scores)), "teacher")) == 15
    assert reliability_chart("r", "validation", {"student": metrics}) == ""


@pytest.mark.parametrize("recovered", [-0.4, 0.0, 0.3, 1.0, 1.6])
def test_the_student_stands_between_baseline_and_teacher(recovered: float) -> None:
    svg = _svg(gap_chart("g", [Gap("d", 3.0, 4.0 - recovered, 4.0, recovered)]))
    places = {role: _marks(svg, role)[0][0] for role in ("baseline", "student", "teacher")}
    way = places["teacher"] - places["baseline"]
    share = (places["student"] - places["baseline"]) / way
    assert share == pytest.approx(recovered, abs=0.002)
    assert f"student {4 - recovered:.4f}" in svg.all("desc")[0].text


def test_a_row_of_dots_has_its_seeds_mean_and_interval() -> None:
    rows = [
        Dots("a", (1.0, 3.0), 2.0, (0.0, 4.0), "2.0 ± 2.0"),
        Dots("b" * 30 + "end", (1.0,), 1.0, None, "1.0"),
        Dots("diverged", (math.nan,), math.nan, None, "NaN"),
    ]
    svg = _svg(dot_chart("d", "T", rows, "loss"))
    seeds, means = _marks(svg, "seed"), _marks(svg)
    assert (len(seeds), len(means)) == (2, 2)
    assert means[0][0] == pytest.approx((seeds[0][0] + seeds[1][0]) / 2, abs=0.02)
    assert means[1][0] == seeds[0][0]
    assert svg.all("desc")[0].text == f"a: 2.0 ± 2.0. {'b' * 30}end: 1.0."
    name = next(text for text in _texts(svg) if text.startswith("bb"))
    assert len(name) == 24
    assert name.endswith("end")
    assert dot_chart("d", "T", rows[2:], "loss") == ""


def test_bars_are_proportional_and_labelled() -> None:
    svg = _svg(bar_chart("b", "T", {"a": 2.0, "b": 4.0, "c": math.nan}, lambda v: f"{v:g} s"))
    widths = []
    for group in (g for g in svg.all("g") if g.attributes.get("class") == "bar"):
        numbers = [float(n) for n in re.findall(r"[\d.]+", group.all("path")[0].attributes["d"])]
        widths.append(max(numbers[::2]) - min(numbers[::2]))
    assert widths == pytest.approx([240, 480], abs=0.02)
    assert sorted(_texts(svg)) == ["2 s", "4 s", "a", "b"]
    assert bar_chart("b", "T", {}, str) == ""
