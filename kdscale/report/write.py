"""Reads a run, renders it, puts the files beside its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kdscale.report.card import model_card
from kdscale.report.compare import summarise_comparison
from kdscale.report.compare_html import render_comparison
from kdscale.report.html import render_html
from kdscale.report.load import load_run
from kdscale.report.markdown import render_markdown
from kdscale.store import Store


def write_report(store: Store) -> str:
    """Write `report/index.html` and `report/summary.md` of the run in `store`; the latter's text.

    Raises KdscaleError where the run has no results, or its files cannot be understood.
    """
    run = load_run(store)
    summary = render_markdown(run)
    store.put("report/index.html", render_html(run).encode())
    store.put("report/summary.md", summary.encode())
    return summary


def write_comparison(runs: Sequence[Store], to: Path) -> str:
    """Write a page that compares the runs in the stores to the file `to`; its tables as Markdown.

    Raises KdscaleError where runs have no results, or none that can be compared.
    """
    found = [load_run(store) for store in runs]
    text = render_comparison(found)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    return summarise_comparison(found)


def write_model_card(store: Store, which: Literal["student", "baseline"] = "student") -> str:
    """Write `<which>/README.md` of the run in `store` and return its text.

    Raises KdscaleError where the run has no results or no such model.
    """
    run = load_run(store)
    card = model_card(run.results, which, run.config)
    store.put(f"{which}/README.md", card.encode())
    return card
