"""How far the logits of an exported model are from those of the run's own, and what that costs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from kdscale.errors import KdscaleError
from kdscale.evaluate.metrics import LanguageModelSums
from kdscale.models.forward import RowTensors, broadcast_logits, model_inputs

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From input_ids and attention_mask, [B, L] int64, to logits [B, L, V]; of a classifier [B, V],
where V is the number of its classes."""


@dataclass(frozen=True)
class Comparison:
    """An exported model beside the run's own."""

    shapes: tuple[tuple[int, int], ...]  # sequences and tokens of the batches, each shape once
    difference: float  # the largest, of two logits
    largest: float  # logit of the run's own model, absolute
    loss: float  # nats a label
    agreement: float  # share of labels where both have the same top-1
    kl: float  # KL(own || exported), nats a label
    labels: int

    def check_difference(self, tolerance: float, what: str) -> None:
        """Refuse a difference of logits above `tolerance`, NaN too."""
        if not self.difference <= tolerance:
            raise KdscaleError(
                f"The logits of {what} differ from the run's own by {self.difference:.3g}; "
                f"{tolerance:.3g} are allowed.",
                "Nothing was written. Leave this format out, and report it with the versions of "
                "torch, transformers and onnxruntime.",
            )

    def check_kl(self, tolerance: float, what: str) -> None:
        """Refuse distributions further off than `tolerance` nats a label, NaN too."""
        if not self.kl <= tolerance:
            raise KdscaleError(
                f"The distributions of {what} are {self.kl:.3g} nats a label (KL) from the run's "
                f"own, and {self.agreement:.1%} of its top-1 choices are the same; "
                f"{tolerance:.3g} nats are allowed.",
                "Nothing was written. This model does not bear 8 bits: leave this format out, and "
                "take --format onnx (float32).",
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "max_difference": self.difference,
            "loss": self.loss,
            "agreement_top1": self.agreement,
            "kl": self.kl,
            "labels": self.labels,
            "shapes": [list(shape) for shape in self.shapes],
        }


def forward_of(model: torch.nn.Module) -> Forward:
    """A transformers model as kdscale runs it."""

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(**model_inputs(model, ids, mask)).logits
        return logits

    return forward


@torch.no_grad()
def compare(
    own: torch.nn.Module, exported: Forward, batches: Iterable[RowTensors], outputs: int
) -> Comparison:
    """Compare over `batches` (`segments` is the attention mask); of logits the first `outputs`.

    Logits are compared wherever there is a token; loss, agreement and KL are those of the labels.
    """
    reference = forward_of(own)
    sums = LanguageModelSums(torch.device("cpu"))
    shapes: dict[tuple[int, int], None] = {}
    difference, largest = torch.zeros(()), torch.zeros(())
    for batch in batches:
        length = batch.ids.shape[1]
        shapes[len(batch.ids), length] = None
        expected, found = (
            broadcast_logits(own, forward(batch.ids, batch.segments)[..., :outputs], length).float()
            for forward in (reference, exported)
        )
        here = batch.segments.bool()
        difference = torch.maximum(difference, (expected[here] - found[here]).abs().max())
        largest = torch.maximum(largest, expected[here].abs().max())
        known = batch.known
        teacher = expected[known].log_softmax(dim=-1)
        sums.update(found[known], batch.labels[known], teacher)
    metrics = sums.metrics()
    return Comparison(
        shapes=tuple(shapes),
        difference=difference.item(),
        largest=largest.item(),
        loss=metrics["loss"],
        agreement=metrics["agreement_top1"],
        kl=metrics["kl_teacher_student"],
        labels=metrics["tokens"],
    )
