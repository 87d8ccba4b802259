"""The tables of what models score, and what their columns mean."""

from collections.abc import Callable

from kdscale.evaluate.results import DomainMetrics, Results
from kdscale.report import facts
from kdscale.report import formatting as units
from kdscale.report.facts import HOME, Table
from kdscale.report.labels import classifies, words_of


def score_tables(results: Results) -> list[Table]:
    """What the models score: each evaluation set, how like the teacher they are, what changes from
    the first set to the others, then the gap recovered."""
    domains = facts.domains(results)
    tables = [quality_table(results, domain) for domain in domains]
    if (fidelity := fidelity_table(results)).rows:
        tables.append(fidelity)
    if HOME in domains and len(domains) > 1:
        tables.append(change_table(results))
    if any(gap is not None for gap in results["gap_recovered"].values()):
        tables.append(gap_table(results))
    return tables


def quality_table(results: Results, domain: str) -> Table:
    """One row a model: size, losses, calibration; of classifiers how well they tell classes
    apart."""
    if classifies(results):
        return _classes_table(results, domain)
    header = ["Model", "Parameters", "Loss", "Perplexity", "Bits/byte", "ECE", "ECE scaled"]

    def cells(metrics: DomainMetrics) -> list[str]:
        return [
            units.number(metrics["loss"], 4),
            units.number(metrics["perplexity"], 2),
            units.number(metrics["bits_per_byte"], 4),
            units.number(metrics["ece"], 4),
            _scaled_error(metrics),
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
    header += ["Loss", "ECE", "ECE scaled"]

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
        ]

    return _by_model(results, domain, "documents", header, cells)


def _scaled_error(metrics: DomainMetrics) -> str:
    """The calibration error after temperature scaling, with the temperature."""
    error, temperature = metrics.get("ece_scaled"), metrics.get("temperature")
    if error is None:
        return units.NONE
    return f"{units.number(error, 4)} (T {units.number(temperature, 2)})"


def fidelity_table(results: Results) -> Table:
    """How like the teacher's the distributions of the others are, a row a model and domain."""
    columns = {
        "Agreement": lambda scored: units.percent(scored.get("agreement_top1")),
        "Top 10": lambda scored: units.percent(scored.get("overlap_top10")),
        "KL": lambda scored: units.number(scored.get("kl_teacher_student"), 4),
        "KL back": lambda scored: units.number(scored.get("kl_student_teacher"), 4),
    }
    if classifies(results):
        del columns["Top 10"]
    rows = []
    for domain in facts.domains(results):
        for model in facts.models(results):
            scored = facts.score(results, model, domain)
            if scored is not None and "agreement_top1" in scored:
                rows.append([f"{model}, {domain}", *(cell(scored) for cell in columns.values())])
    return Table("Fidelity to the teacher", ["Model and domain", *columns], rows)


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
    """What the columns of the tables mean."""
    target, seen = words_of(results).target, results.get("context")
    of_classes = (
        "F1, precision and recall are means over the classes; F1 with its 95 % interval over "
        "documents drawn again. MCC: Matthews correlation. AUROC: one class against the others, "
        "mean over the classes. "
    )
    of_context = f"Context: at least {seen} of its document's tokens before each, or all there are."
    of_overlap = "Top 10: share of the model's ten likeliest that are among the teacher's. "
    return (
        f"{of_classes if classifies(results) else ''}Loss in nats a {target}. "
        f"{'' if seen is None else of_context + ' '}ECE: expected calibration error over 15 "
        "equal-width bins; scaled: with logits divided by the temperature T that makes the "
        "validation labels likeliest. Agreement: share of targets where the model's top-1 choice "
        f"is the teacher's. {'' if classifies(results) else of_overlap}KL: from the teacher to the "
        f"model, nats a {target}; back: from the model to the teacher. The baseline is the student "
        "trained on the labels alone, with the same steps, order and seed."
    )
