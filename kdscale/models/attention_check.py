"""Check that a model gives the attention weights that a loss on them needs.

Not every architecture has them: state-space layers have none, and some give them for a part of
their layers, without saying which. It is better to find out on a few tokens than in a step.
"""

import torch

from kdscale.errors import KdscaleError
from kdscale.models.forward import model_inputs
from kdscale.models.head import ModelWithHead
from kdscale.models.modes import evaluation_mode

_POSITIONS = 8


@torch.no_grad()
def check_attention(model: ModelWithHead, device: torch.device) -> None:
    """Refuse a model without attention weights in every layer, or whose dropout changes them.

    Call it as `model(check_attention, device)`, in training mode. Does nothing to a model that is
    not asked for attention. Raises KdscaleError.
    """
    if not model.gives_attention:
        return
    with evaluation_mode(model):
        undropped = _first_weights(model, device)
    # A query that sees itself alone: dropout leaves either nothing of its weight or more than all.
    if not torch.allclose(_first_weights(model, device), undropped):
        raise KdscaleError(
            "distill.online.attention compares attention weights, and dropout changes those of the "
            f"student ({model.model.config.model_type!r}).",
            "Set its attention dropout to 0: training.dropout for all dropouts, or the "
            "architecture's own option (attention_dropout, attn_pdrop).",
        )


def _first_weights(model: ModelWithHead, device: torch.device) -> torch.Tensor:
    """Return the weight of a text's first position on itself, [layers, heads]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.vocab_size, (1, _POSITIONS), generator=generator).to(device)
    inputs = model_inputs(model.model, ids, torch.ones_like(ids))
    try:
        found = getattr(model.model(**inputs, output_attentions=True), "attentions", None) or ()
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _without_weights(model, str(error)) from error
    weights = [each for each in found if each is not None and each.dim() == 4]
    depth = model.model.config.get_text_config().num_hidden_layers
    if len(weights) != depth or any(each.shape[2:] != 2 * (_POSITIONS,) for each in weights):
        raise _without_weights(model, f"{len(weights)} of {depth} layers do")
    return torch.stack([each[0, :, 0, 0] for each in weights])


def _without_weights(model: ModelWithHead, reason: str) -> KdscaleError:
    return KdscaleError(
        f"The architecture {model.model.config.model_type!r} does not give the attention weights "
        f"of all of its layers: {reason}.",
        "Leave out distill.online.attention; distill.online.hidden compares hidden states, "
        "which every architecture has.",
    )
