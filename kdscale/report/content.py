"""Content of a report, section by section: sentences, tables and numbers.

The page lays it out and draws charts beside it, and `as_json` gives the same to programs, so that
neither can say what the other does not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kdscale.evaluate.schema import Results
from kdscale.report import facts, tables
from kdscale.report.cache_quality import audit_sentences, audit_table
from kdscale.report.costs import cost_figures, cost_sentences, cost_table
from kdscale.report.disagreements import disagreement_table
from kdscale.report.facts import task_labels
from kdscale.report.load import ReportData
from kdscale.report.tables import Table, table_json
from kdscale.report.training import training_figures, training_sentences, training_table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Section:
    """The words and figures of one section."""

    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: dict[str, Any] = field(default_factory=dict)  # numbers behind the cells
    notes: Sequence[str] = ()  # what the figures are and rest on, below them


def sections(run: ReportData) -> dict[str, Section]:
    """Return the sections in the page's order; those without content are empty."""
    results = run.results
    costs = cost_sentences(results)
    return {
        "quality": Section(
            sentences=gap_reasons(results),
            tables=[*tables.score_tables(results), *_confusions(results)],
            figures=_quality_figures(results),
            notes=[tables.legend(results)],
        ),
        "lm_eval": Section(tables=_present(_harness(results))),
        "cost": Section(
            sentences=costs[:1],
            tables=_present(cost_table(results) or tables.stage_table(results)),
            figures=cost_figures(results),
            notes=[note for note in costs[1:] if note],
        ),
        "cache": Section(
            sentences=audit_sentences(results),
            tables=_present(audit_table(results), _cache(results)),
            figures=dict(results.get("cache_audit", {})),
        ),
        "training": Section(
            sentences=training_sentences(run),
            tables=_present(training_table(run)),
            figures=training_figures(run),
        ),
        "disagreements": Section(
            tables=_present(disagreement_table(results)),
            figures={"positions": results.get("disagreements", [])},
        ),
        "speed": Section(
            tables=_present(tables.model_speed_table(results), tables.speed_table(run)),
            figures=_speed_figures(results),
        ),
        "calibration": Section(
            tables=[tables.calibration_table(results, domain) for domain in facts.domains(results)]
        ),
        "samples": Section(tables=tables.sample_tables(results)),
        "provenance": Section(tables=[tables.provenance_table(results)]),
    }


def as_json(run: ReportData) -> dict[str, Any]:
    """Return the report as plain values: the text of every cell, and the numbers behind them."""
    results = run.results
    return {
        "schema_version": SCHEMA_VERSION,
        "run": results["run"],
        "created": results["created"],
        "headline": facts.headline(results),
        "key_figures": [asdict(each) for each in facts.key_figures(results)],
        "sections": {name: _plain(section) for name, section in sections(run).items()},
    }


def gap_reasons(results: Results) -> list[str]:
    """Return why domains have no gap recovered, each reason once."""
    gaps = results["gap_recovered"]
    return list(dict.fromkeys(facts.no_gap_reason(results, d) for d in gaps if gaps[d] is None))


def _plain(section: Section) -> dict[str, Any]:
    return {
        "sentences": list(section.sentences),
        "tables": [table_json(table) for table in section.tables],
        "notes": list(section.notes),
        "figures": section.figures,
    }


def _present(*found: Table | None) -> list[Table]:
    return [table for table in found if table is not None and table.rows]


def _harness(results: Results) -> Table | None:
    return tables.harness_table(results) if results.get("lm_eval") else None


def _cache(results: Results) -> Table | None:
    cache = results["cache"]
    return None if cache is None else tables.cache_table(cache, task_labels(results).target)


def _confusions(results: Results) -> list[Table]:
    found = (
        tables.confusion_table(results, model, domain)
        for domain in facts.domains(results)
        for model in facts.models(results)
    )
    return [table for table in found if table is not None]


def _quality_figures(results: Results) -> dict[str, Any]:
    return {
        "gap_recovered": results["gap_recovered"],
        "gap_intervals": results.get("gap_intervals", {}),
        "times_smaller": facts.times_smaller(results),
    }


def _speed_figures(results: Results) -> dict[str, Any]:
    found = facts.times_faster(results)
    if found is None:
        return {}
    times, interval = found
    return {"times_faster": times, "times_faster_interval": list(interval)}
