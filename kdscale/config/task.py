"""Tasks: what a run's models predict."""

from typing import Literal

Task = Literal["causal-lm", "masked-lm", "sequence-classification"]
