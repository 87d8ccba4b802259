"""What the evaluate stage needs besides teacher and student: text that is written, and the other
models of the config."""

from typing import Any

from kdscale.errors import KdscaleError
from kdscale.evaluate.external_models import check_other
from kdscale.evaluate.speed import PROMPT_TOKENS
from kdscale.models.load import load_config_of
from kdscale.models.positions import usable_positions
from kdscale.models.stored_tensors import check_weights
from kdscale.preflight.locate import locate
from kdscale.preflight.view import View


def check_evaluation(view: View) -> None:
    """KdscaleError where a model cannot write the text that is asked for, or another model cannot
    be compared."""
    config = view.config
    with view.findings.check("what evaluation writes and compares"):
        if config.task == "causal-lm":
            for what, shape in (
                ("teacher", view.teacher),
                ("student", None if view.student is None else view.student.config),
            ):
                if shape is not None:
                    _check_writing(view, what, shape)
        for name, source in config.evaluate.models.items():
            folder = locate(view, f"evaluate.models.{name}", source)
            if folder is not None:
                tokenizer = view.data.tokenizer if view.data is not None else None
                check_other(name, folder, config, view.data, tokenizer)
                weights = source if "://" in source else folder
                check_weights(weights, None, load_config_of(folder))


def _check_writing(view: View, what: str, shape: Any) -> None:
    """KdscaleError where `shape`, a transformers config, has not the positions for the longest text
    that it is to write."""
    config, length = view.config.evaluate, view.config.data.seq_len
    wanted = []
    if config.speed is not None:
        prompt = min(PROMPT_TOKENS, length)
        wanted.append((prompt, config.speed.new_tokens, "evaluate.speed"))
    if config.samples is not None:
        prompt = min(config.samples.prompt_tokens, length // 2)
        wanted.append((prompt, config.samples.new_tokens, "evaluate.samples"))
    positions = usable_positions(shape)
    for prompt, new, field in wanted:
        if positions is not None and prompt + new > positions:
            raise KdscaleError(
                f"The {what} has {positions} positions, and {field} lets it write {new} tokens "
                f"after {prompt}.",
                f"Set {field}.new_tokens to at most {max(0, positions - prompt)}, or {field} to "
                "null.",
            )
