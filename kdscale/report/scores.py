"""The tables of what models score, and what their columns mean."""

from collections.abc import Callable

from kdscale.evaluate.results import DomainMetrics, Results
from kdscale.report import facts, units
from kdscale.report.facts import Table
from kdscale.report.words import classifies, words_of

HOME = "validation"
"""The evaluation set that comes from the training corpus."""


def score_tables(results: Results) -> list[Table]:
    """What the models score: each evaluation set, what changes from the first to the others, then
    the gap recovered."""
    domains = facts.domains(results)
    tables = [quality_table(results, domain) for domain in domains]
    if HOME in domains and len(domains) > 1:
        tables.append(change_table(results))
    if any(gap is not None for gap in results["gap_recovered"].values()):
        tables.append(gap_table(results))
    return tables


def quality_table(results: Results, domain: str) -> Table:
    """One row a model: size, losses, calibration, fidelity to the teacher; of classifiers how well
    they tell classes apart."""
    if classifies(results):
        return _classes_table(results, domain)
    header = ["Model", "Parameters", "Loss", "Perplexity", "Bits/byte", "ECE"]
    header += ["ECE scaled", "Agreement", "Top 10", "KL", "KL back"]

    def cells(metrics: DomainMetrics) -> list[str]:
        return [
            units.number(metrics["loss"], 4),
            units.number(metrics["perplexity"], 2),
            units.number(metrics["bits_per_byte"], 4),
            units.number(metrics["ece"], 4),
            _scaled_error(metrics),
            units.percent(metrics.get("agreement_top1")),
            units.percent(metrics.get("overlap_top10")),
            units.number(metrics.get("kl_teacher_student"), 4),
            units.number(metrics.get("kl_student_teacher"), 4),
        ]

    return _by_model(results, domain, "tokens", header, cells)


def _by_model(
    results: Results,
    domain: str,
    unit: str,
    header: list[str],
    cells: Callable[[DomainMetrics], list[str]],
) -> Table:
    """A row for each model that was evaluated on `domain`, with its size before its `cells`."""
    scores = {model: facts.score(results, model, domain) for model in facts.models(results)}
    found = {model: metrics for model, metrics in scores.items() if metrics is not None}
    rows = [
        [model, units.count(results["models"][model]["parameters"]), *cells(metrics)]
        for model, metrics in found.items()
    ]
    scored = max((metrics["tokens"] for metrics in found.values()), default=0)
    return Table(f"{domain}: {scored:,} {unit}", header, rows)


def _classes_table(results: Results, domain: str) -> Table:
    header = ["Model", "Parameters", "Accuracy", "F1", "Precision", "Recall", "MCC", "AUROC"]
    header += ["Loss", "ECE", "ECE scaled", "Agreement"]

    def cells(metrics: DomainMetrics) -> list[str]:
        return [
            units.percent(metrics.get("accuracy")),
            units.between(metrics.get("f1_macro"), metrics.get("intervals", {}).get("f1_macro")),
            units.percent(metrics.get("precision_macro")),
            units.percent(metrics.get("recall_macro")),
            units.number(metrics.get("mcc"), 3),
            units.number(metrics.get("auroc"), 3),
            units.number(metrics["loss"], 4),
            units.number(metrics["ece"], 4),
            _scaled_error(metrics),
            units.percent(metrics.get("agreement_top1")),
        ]

    return _by_model(results, domain, "documents", header, cells)


def _scaled_error(metrics: DomainMetrics) -> str:
    """The calibration error after temperature scaling, with the temperature."""
    error, temperature = metrics.get("ece_scaled"), metrics.get("temperature")
    if error is None:
        return units.NONE
    return f"{units.number(error, 4)} (T {units.number(temperature, 2)})"


def change_table(results: Results) -> Table:
    """How each model's figures on another domain differ from those on HOME, which it comes from: a
    row a model and domain."""
    header = ["Model and domain", "Loss", "Bits/byte", "ECE"]
    if classifies(results):
        header = ["Model and domain", "Accuracy, points", "F1, points", "Loss", "ECE"]
    rows = []
    for domain in facts.domains(results):
        for model in facts.models(results):
            home, away = (facts.score(results, model, d) for d in (HOME, domain))
            if domain != HOME and home is not None and away is not None:
                rows.append([f"{model}, {domain}", *_changes(home, away)])
    return Table(f"Change from {HOME}, the training domain", header, rows)


def _changes(home: DomainMetrics, away: DomainMetrics) -> list[str]:
    shown = [
        units.signed(away["loss"] - home["loss"], 4),
        units.signed(_difference(away["bits_per_byte"], home["bits_per_byte"]), 4),
        units.signed(away["ece"] - home["ece"], 4),
    ]
    if "f1_macro" not in home:
        return shown
    accuracy = _difference(away.get("accuracy"), home.get("accuracy"))
    f1 = _difference(away.get("f1_macro"), home.get("f1_macro"))
    points = [None if each is None else 100 * each for each in (accuracy, f1)]
    return [*(units.signed(each, 1) for each in points), shown[0], shown[2]]


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def gap_table(results: Results) -> Table:
    """Gap recovered on each domain, with its interval."""
    intervals = results.get("gap_intervals", {})
    rows = [
        [
            domain,
            units.between(gap, intervals.get(domain))
            if gap is not None
            else facts.no_gap_reason(results, domain),
        ]
        for domain, gap in results["gap_recovered"].items()
    ]
    return Table("Share of the loss gap recovered", ["Domain", "Gap recovered"], rows)


def legend(results: Results) -> str:
    """What the columns of the quality tables mean."""
    target = words_of(results).target
    of_classes = (
        "F1, precision and recall are means over the classes; F1 with its 95 % interval over "
        "documents drawn again. MCC: Matthews correlation. AUROC: one class against the others, "
        "mean over the classes. "
    )
    of_distributions = (
        "Top 10: share of the model's ten likeliest that are among the teacher's. KL: from the "
        f"teacher to the model, nats a {target}; back: from the model to the teacher. "
    )
    seen = results.get("context")
    of_context = (
        f"Context: at least {seen} of its document's tokens before each, or all there are. "
        if seen is not None
        else ""
    )
    return (
        f"{of_classes if classifies(results) else ''}Loss in nats a {target}. {of_context}ECE: "
        "expected calibration error over 15 equal-width bins; scaled: with logits divided by the "
        "temperature T that makes the validation labels likeliest. Agreement: share of targets "
        "where the model's top-1 choice is the teacher's. "
        f"{'' if classifies(results) else of_distributions}"
        "The control is the student trained on the labels alone, with the same steps, order and "
        "seed."
    )
