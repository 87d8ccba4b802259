"""What the student is to learn from: codec, loss and curriculum against the vocabulary and the
labels."""

from kdscale.cache.codecs import make_codec
from kdscale.config.loss import check_defined
from kdscale.curriculum.difficulty import needs
from kdscale.data.rows.classes import UNKNOWN_LABEL
from kdscale.errors import KdscaleError
from kdscale.preflight.view import View


def check_targets(view: View) -> None:
    """KdscaleError where the codec asks for more ids than there are, the loss is not defined on its
    targets, or the curriculum ranks by labels that are not known."""
    config, data = view.config, view.data
    if config.cache.reuse is None:
        with view.findings.check("codec against loss and vocabulary"):
            if data is not None:
                make_codec(config.cache.codec, data.outputs)
            if config.distill.targets == "cache":
                check_defined(config.distill.loss.divergence.kind, config.cache.codec.kind)
    if view.makes("distill"):
        _check_labels(view)


def _check_labels(view: View) -> None:
    """Where rows are there, their labels are counted."""
    wanted = {"nll", "gap"} & set(needs(view.config.distill.curriculum.difficulty))
    if view.prepared is None or not wanted or view.config.data.labels is None:
        return
    table = view.prepared.training("cache")
    unlabelled = table.class_counts.get(UNKNOWN_LABEL, 0)
    if unlabelled:
        raise KdscaleError(
            f"{unlabelled:,} of {len(table):,} training rows have no label, and the difficulties "
            "`nll` and `gap` ask for every row's.",
            "Set distill.curriculum.difficulty to entropy, length or rarity.",
        )
