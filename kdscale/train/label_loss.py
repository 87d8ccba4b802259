"""Cross-entropy on labels, weighted: classes of unequal size, labels that are not known."""

from dataclasses import dataclass

import torch

from kdscale.config.data import DataConfig
from kdscale.data.rows.prepared import RowTable
from kdscale.losses.fused import LossSums, head_and_loss
from kdscale.models.forward import RowTensors
from kdscale.models.head import ModelWithHead


@dataclass(frozen=True)
class LabelWeights:
    """Weight of each label in the cross-entropy."""

    of_class: torch.Tensor | None = None  # [classes] float32; None where all count alike
    known_share: float = 1.0  # of the sequences; those with a known label count for the others

    def at(self, labels: torch.Tensor) -> torch.Tensor | None:
        """Return [P] float32 for labels [P], 0 where one is -1; None where every one counts 1."""
        if self.of_class is None and self.known_share == 1:
            return None
        weights = (labels >= 0).float() / self.known_share
        return weights if self.of_class is None else weights * self.of_class[labels.clamp_min(0)]


EQUAL = LabelWeights()


def label_loss(model: ModelWithHead, rows: RowTensors, weights: LabelWeights = EQUAL) -> LossSums:
    """Return the sums of the cross-entropy on the labels at the positions of `rows` that count."""
    labels, hidden = rows.pick(rows.labels), model.hidden_at(rows)
    return head_and_loss(hidden, model.head, labels, label_weights=weights.at(labels))


def known_cross_entropy(model: ModelWithHead, rows: RowTensors) -> torch.Tensor:
    """Return the cross-entropy, a sum, at the positions of `rows` that count and have a label."""
    return label_loss(model, rows.with_mask(rows.known)).cross_entropy


def class_weights(data: DataConfig, table: RowTable, device: torch.device) -> torch.Tensor | None:
    """Return [classes] float32: inverse to the classes' frequencies, 1 on average.

    Over the labelled sequences of `table`. None where the config asks for no balance.
    """
    if data.labels is None or data.labels.balance == "none":
        return None
    counts = {number: rows for number, rows in table.class_counts.items() if number >= 0}
    weights = torch.zeros(max(counts) + 1)
    for number, rows in counts.items():
        weights[number] = sum(counts.values()) / (len(counts) * rows)
    return weights.to(device)
