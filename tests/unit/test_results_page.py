"""docs/results.md has the figures that the benchmarks gave."""

import json
import re

from benchmarks import results_page


def test_every_table_is_that_of_the_results() -> None:
    page = results_page.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- table: (\w+) -->", page)) == set(results_page.TABLES)
    assert results_page.filled(page) == page


def test_the_plot_is_that_of_the_results() -> None:
    found = json.loads((results_page.RESULTS / "quality.json").read_text(encoding="utf-8"))
    drawn = (results_page.PLOT.read_text(encoding="utf-8"), results_page.plot(found))
    # The description has the figures; the drawing varies with the release of Matplotlib.
    kept, now = (re.findall(r"<desc[^>]*>(.*)</desc>", text) for text in drawn)
    assert kept == now != []
