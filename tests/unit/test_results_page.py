"""docs/results.md and docs/gpu.md have the figures that the benchmarks gave."""

import json
import re

from benchmarks import results_page


def test_every_table_is_that_of_the_results() -> None:
    names = set()
    for path in (results_page.PAGE, results_page.GPU_PAGE):
        page = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"<!-- table: (\w+) -->", page))
        assert results_page.filled(page) == page
    assert names == set(results_page.TABLES)


def test_the_plot_is_that_of_the_results() -> None:
    found = json.loads((results_page.RESULTS / "quality.json").read_text(encoding="utf-8"))
    drawn = (results_page.PLOT.read_text(encoding="utf-8"), results_page.plot(found))
    # The description has the figures; the drawing varies with the release of Matplotlib.
    kept, now = (re.findall(r"<desc[^>]*>(.*)</desc>", text) for text in drawn)
    assert kept == now != []
