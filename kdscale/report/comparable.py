"""Groups of comparable runs: those whose figures are of the same sequences and tokens.

Losses are of the tokens that they were measured on, so runs with another tokenizer, other sequences
or another context have nothing to join. What is relative to a teacher (the gap, agreement) is
compared among runs of one teacher.
"""

import json
from collections.abc import Sequence
from typing import Any

from kdscale.report.load import ReportData

_Key = tuple[tuple[str, Any], ...]  # what a figure is of, by its name in sentences


def comparable_groups(runs: Sequence[ReportData], domain: str) -> list[list[int]]:
    """Return the places of runs whose losses on `domain` can be compared, the largest group first.

    Every run is in one group; one that fits no other is alone.
    """
    groups: dict[_Key, list[int]] = {}
    for place, key in enumerate(_keys(runs, domain)):
        groups.setdefault(key, []).append(place)
    return sorted(groups.values(), key=len, reverse=True)


def same_teacher(runs: Sequence[ReportData]) -> bool:
    """Return whether the runs have one teacher, or train one by the same recipe."""
    return len({_teacher(run) for run in runs}) < 2


def not_comparable(
    runs: Sequence[ReportData], domains: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Return a sentence for each run and set that cannot be joined with the others, and why."""
    found = []
    for domain in domains:
        first, *others = comparable_groups(runs, domain)
        keys = _keys(runs, domain)
        for place in (place for group in others for place in group):
            theirs, ours = dict(keys[place]), dict(keys[first[0]])
            reasons = [name for name in theirs if theirs[name] != ours[name]]
            found.append(
                f"{names[place]} is not comparable on {domain} with {names[first[0]]}: it has "
                f"{' and '.join(reasons)}."
            )
        if not same_teacher([runs[place] for place in first]):
            listed = ", ".join(names[place] for place in first)
            found.append(
                f"{listed} have different teachers: their losses on {domain} are compared, their "
                "gaps and agreement with a teacher are not."
            )
    return found


def _keys(runs: Sequence[ReportData], domain: str) -> list[_Key]:
    """Return what each run's figures are of; by the checksums of the data where all have them."""
    exact = all("evaluated" in run.results for run in runs)
    return [_exact_key(run, domain) if exact else _known_key(run, domain) for run in runs]


def _exact_key(run: ReportData, domain: str) -> _Key:
    evaluated = run.results["evaluated"]
    return (
        ("another tokenizer", evaluated["tokenizer"]),
        ("other evaluation data", evaluated["sets"].get(domain)),
        ("another context", run.results.get("context")),
    )


def _known_key(run: ReportData, domain: str) -> _Key:
    """Return the key of results from before data had checksums: tokenizer and number of targets."""
    results = run.results
    identity = _identity(run)
    # The student may have its own tokens, whose number is not the data's.
    of_data = next((name for name in results["models"] if name != "student"), "student")
    scores = results["models"].get(of_data, {"domains": {}})["domains"].get(domain)
    return (
        ("another tokenizer", identity.get("tokenizer")),
        ("other evaluation data", scores["tokens"] if scores else None),
        ("another context", results.get("context")),
    )


def _teacher(run: ReportData) -> str:
    """Return what tells teachers apart: the recipe of one trained in the run, else its weights."""
    section = run.setting("teacher")
    if isinstance(section, dict) and section.get("training"):
        recipe = {name: value for name, value in section.items() if name != "workers"}
        return json.dumps(recipe, sort_keys=True, default=str)
    known = [
        run.results["evaluated"]["teacher"] if "evaluated" in run.results else None,
        _identity(run).get("teacher"),
        run.setting("teacher.load"),
    ]
    return next((str(found) for found in known if found), "")


def _identity(run: ReportData) -> dict[str, Any]:
    """Return the identity of the run's cache, empty where it is not known."""
    cache: Any = run.results["cache"] or {}
    found = cache.get("identity")
    return found if isinstance(found, dict) else {}
