"""Report of a run: page, summary and model card from results, metrics and config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kdscale.report.card import model_card
from kdscale.report.compare import comparison_json, summarise_comparison
from kdscale.report.content import as_json
from kdscale.report.load import load_report_data, setting
from kdscale.report.markdown import render_markdown
from kdscale.store import Store

__all__ = ["model_card", "report_json", "write_comparison", "write_model_card", "write_report"]


def write_report(store: Store) -> str:
    """Write `report/index.html` and `report/summary.md` of the run in `store`; return the summary.

    Raises KdscaleError where the run has no results, or its files cannot be parsed.
    """
    from kdscale.report.pages import render_report  # loads Matplotlib

    run = load_report_data(store)
    summary = render_markdown(run)
    store.put("report/index.html", render_report(run).encode())
    store.put("report/summary.md", summary.encode())
    return summary


def report_json(runs: Sequence[Store]) -> dict[str, Any]:
    """Return what the report of a run, or the comparison of several, says as plain values.

    Raises KdscaleError as `write_report` and `write_comparison` do.
    """
    found = [load_report_data(store) for store in runs]
    return as_json(found[0]) if len(found) == 1 else comparison_json(found)


def write_comparison(runs: Sequence[Store], to: Path) -> str:
    """Write a page that compares the runs to the file `to`; return its tables as Markdown.

    Raises KdscaleError where runs have no results, or none that can be compared.
    """
    from kdscale.report.pages import render_comparison  # loads Matplotlib

    found = [load_report_data(store) for store in runs]
    text = render_comparison(found)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    return summarise_comparison(found)


def write_model_card(store: Store, which: Literal["student", "baseline"] = "student") -> str:
    """Write `<which>/README.md` of the run in `store` and return its text.

    Raises KdscaleError where the run has no results or no such model.
    """
    run = load_report_data(store)
    base = None
    if store.exists(f"{which}/adapter_config.json"):
        copied = store.exists(f"{which}/base/config.json")
        base = "base" if copied else setting(run.config or {}, "distill.student.load")
    card = model_card(run.results, which, run.config, adapter_base=base)
    store.put(f"{which}/README.md", card.encode())
    return card
