"""What a label counts: by its class, and where some are not known."""

import pytest
import torch

from kdscale.config.data import DataConfig
from kdscale.train.label_loss import EQUAL, LabelWeights, class_weights

CPU = torch.device("cpu")


class Counted:
    """A table of rows whose classes are counted."""

    class_counts = {-1: 50, 0: 60, 1: 30, 2: 10}


def config(balance: str) -> DataConfig:
    return DataConfig.model_validate({"labels": {"balance": balance}})


def test_classes_count_in_inverse_proportion_and_1_on_average() -> None:
    weights = class_weights(config("weights"), Counted(), CPU)  # type: ignore[arg-type]
    assert weights is not None
    assert (weights * torch.tensor([60, 30, 10])).tolist() == pytest.approx([100 / 3] * 3)
    assert (weights * torch.tensor([60, 30, 10])).sum().item() == pytest.approx(100)
    assert class_weights(config("none"), Counted(), CPU) is None  # type: ignore[arg-type]
    assert class_weights(DataConfig(), Counted(), CPU) is None  # type: ignore[arg-type]


def test_known_labels_count_for_those_that_are_not() -> None:
    labels = torch.tensor([0, -1, 2, -1])
    assert EQUAL.at(labels) is None
    found = LabelWeights(known_share=0.5).at(labels)
    assert found is not None
    assert found.tolist() == [2, 0, 2, 0]
    both = LabelWeights(torch.tensor([1.0, 2.0, 3.0]), known_share=0.5).at(labels)
    assert both is not None
    assert both.tolist() == [2, 0, 6, 0]
