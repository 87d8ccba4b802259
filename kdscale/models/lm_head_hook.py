"""The last linear map of a model, given some of its positions.

Logits are the largest array of a forward, and mostly a good part of its time. Where only some of
them are asked for, a hook on the map that makes them leaves the others out: what a model does
before, and what it does to each logit after, stays its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def intercept_lm_head(
    model: torch.nn.Module, rows: torch.Size, pick: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """Inside, the last linear map of a transformers `model` takes `pick` of the hidden states
    [B, T, D] that it is given for `rows` [B, T]; those gather in the list. It stays empty where the
    model has no such map, does not call it, or gives it something else, as do models that take the
    padding out."""
    given: list[torch.Tensor] = []
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if output is None:
        yield given
        return

    def take(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if arguments[0].shape[:-1] != rows:
            return arguments
        given.append(arguments[0])
        return (pick(arguments[0]), *arguments[1:])

    hook = output.register_forward_pre_hook(take)
    try:
        yield given
    finally:
        hook.remove()
