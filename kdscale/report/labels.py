"""What a task's results are called."""

from dataclasses import dataclass

from kdscale.evaluate.results import Results


@dataclass(frozen=True)
class Words:
    """Of one task."""

    model: str
    target: str  # what a loss is per, and what the cache keeps something of
    auto_class: str  # of transformers
    pipeline_tag: str  # of the hub


_WORDS = {
    "causal-lm": Words("causal language model", "token", "AutoModelForCausalLM", "text-generation"),
    "masked-lm": Words(
        "masked language model", "masked token", "AutoModelForMaskedLM", "fill-mask"
    ),
    "sequence-classification": Words(
        "text classifier", "document", "AutoModelForSequenceClassification", "text-classification"
    ),
}


def words_of(results: Results) -> Words:
    """Of the task of `results`."""
    return _WORDS[results["task"]]


def classifies(results: Results) -> bool:
    """Whether the models tell classes apart."""
    return results["task"] == "sequence-classification"
