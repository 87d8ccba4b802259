"""Quality of the cache: its targets beside the teacher's whole distributions."""

from kdscale.evaluate.schema import CacheAudit, Results
from kdscale.report import formatting as units
from kdscale.report.facts import task_labels
from kdscale.report.tables import Table

_SAME_TEACHER = 0.9  # as `kdscale cache audit` asks
_ERRORS = 3.0  # standard errors that a bias of 0 stays within


def audit_table(results: Results) -> Table | None:
    """Return a row a figure of the audit; None where there was none."""
    if "cache_audit" not in results:
        return None
    found, target = results["cache_audit"], task_labels(results).target
    rows = [
        [
            "Squared bias of the gradient",
            f"{found['squared_bias']:.1e} ± {found['squared_bias_error']:.0e}",
        ],
        ["Variance of the gradient", f"{found['variance']:.2e}"],
        ["Covered mass", units.percent(found["kept_mass"])],
        [f"Distinct ids per {target}", units.number(found["distinct_ids"], 1)],
        [
            "Bias of the loss, nats",
            f"{units.signed(found['loss_bias'], 4)} ± {units.number(found['loss_bias_error'], 4)}",
        ],
        ["KL from the teacher to the target", units.number(found["kl"], 4)],
        [
            f"Error of the mean gradient over {found['mean_positions']:,}",
            _mean_error(found),
        ],
        ["Ids that come out the same again", units.percent(found["ids_in_common"], 2)],
        ["Seconds of the audit", units.number(found["seconds"], 1)],
    ]
    draws = f", {found['draws']} draws of each" if found["draws"] > 1 else ""
    caption = (
        f"Audit of the cache: {found['positions']:,} positions of {found['sequences']:,} "
        f"sequences{draws}; ± is the standard error"
    )
    return Table(caption, ["Figure", "Value"], rows, name="cache-audit")


def audit_sentences(results: Results) -> list[str]:
    """Return whether the targets are unbiased and are the teacher's; nothing without an audit."""
    found = results.get("cache_audit")
    if found is None:
        return []
    said = (
        f"{_bias(found)} They cover {units.percent(found['kept_mass'])} of the teacher's "
        f"probability; over {found['mean_positions']:,} positions the mean gradient errs by "
        f"{_mean_error(found)}."
    )
    if found["ids_in_common"] < _SAME_TEACHER:
        said += (
            f" Encoded again, only {units.percent(found['ids_in_common'])} of the ids come out "
            "the same: the cache does not agree with this teacher."
        )
    return [said]


def _mean_error(found: CacheAudit) -> str:
    """Return the relative error; a teacher that knows nothing has a gradient of about 0."""
    return units.percent(found["mean_error"]) if found["mean_error"] <= 1 else "more than 100%"


def _bias(found: CacheAudit) -> str:
    if found["squared_bias"] <= _ERRORS * found["squared_bias_error"]:
        return "The targets show no bias: that of the gradient is within its error of 0."
    share = found["squared_bias"] / (found["squared_bias"] + max(0.0, found["variance"]))
    return (
        f"The targets are biased: {units.percent(share)} of the gradient's squared error does not "
        "average out."
    )
