"""The results of an audit as text: the table, a sentence on the cache, the recommendation."""

from kdscale.cache.fidelity.audit import Audit
from kdscale.cache.fidelity.codec_families import as_yaml, label
from kdscale.cache.fidelity.compare_codecs import Audited
from kdscale.report.formatting import NONE, number
from kdscale.report.tables import Table


def proof_sentence(audit: Audit) -> str:
    """Return a sentence on whether the cache agrees with the teacher."""
    proof = audit.proof
    positions = f"{int(proof['positions']):,}"
    if proof["differing"] == 0:
        return f"Encoded again, all {positions} positions come out as the cache has them."
    shared = f"{100 * proof['ids_in_common']:.2f}%"
    differing = f"{int(proof['differing']):,} of {positions} positions differ in an id"
    gaps = f"entropy by {proof['entropy_gap']:.2g} and loss by {proof['nll_gap']:.2g} nats"
    if audit.agrees:
        return (
            f"Encoded again, {differing}, {shared} of the ids are the same, {gaps}: as after a "
            "capture on other hardware or in another dtype."
        )
    return (
        f"The cache does not agree with this teacher: encoded again, {differing}, only {shared} of "
        f"the ids are the same, {gaps}."
    )


def advice(audit: Audit) -> str:
    """Return the recommended codec as lines of YAML."""
    within = f"within {audit.budget:.1f} stored bytes per token"
    if audit.recommended is None:
        return f"No codec keeps {within}."
    return f"Least gradient error {within}:\n\ncache:\n  {as_yaml(audit.recommended.config)}"


def audit_table(audit: Audit) -> Table:
    """Return a row a codec, by stored bytes; `*` is the cache's, `>` the recommended one."""
    wide = audit.own.fidelity.widest.positions
    header = [
        *("codec", "bytes", "stored", "ids", "kept", "bias²", "±", "variance"),
        *("error, 1", f"error, {wide:,}", f"cosine, {wide:,}", "loss bias", "KL"),
    ]
    caption = (
        f"Means over {audit.own.fidelity.positions:,} positions of {audit.rows} sequences. Bias² "
        "and variance of the gradient are summed over the vocabulary, error and cosine are of its "
        "mean over so many positions, loss and KL in nats. A target that gives an id 0, as a drawn "
        "one does most, has no KL. Bytes are the payload's in memory; stored, it is packed as one "
        "chunk of these positions, and a larger chunk takes less. * is the cache's own codec, > "
        "the recommended."
    )
    return Table(caption, header, [_row(codec, audit) for codec in audit.codecs])


def _row(codec: Audited, audit: Audit) -> list[str]:
    found = codec.fidelity
    own, best = codec is audit.own, codec is audit.recommended
    mark = f"{'>' if best else ''}{'*' if own else ''}"
    return [
        f"{mark + ' ' if mark else ''}{label(codec.config)}",
        f"{codec.bytes_in_memory:,}",
        number(codec.bytes_stored, 1),
        number(found.distinct_ids, 1),
        number(found.kept_mass, 3),
        f"{found.squared_bias:.1e}",
        f"{found.squared_bias_error:.0e}",
        f"{found.variance:.2e}" if found.variance else NONE,
        number(found.directions[0].error, 4),
        number(found.widest.error, 4),
        number(found.widest.cosine, 4),
        number(found.loss_bias, 4),
        number(found.kl, 4),
    ]
