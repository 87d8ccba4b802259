"""Distil large Transformers into small ones at cluster scale, from a cache of teacher logits.

    cache = kdscale.open_cache("s3://bucket/run")
    for batch in cache.loader(batch_size=16, seed=0):
        hidden = model.model(**kdscale.model_inputs(model, batch)).last_hidden_state
        loss = kdscale.distillation_loss(hidden, model.lm_head, batch, kd_weight=0.9)

A name is imported when it is first used: `import kdscale` loads neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from kdscale.api.cache import Cache, open_cache
    from kdscale.api.loss import LossParts, distillation_loss, loss_parts, model_inputs
    from kdscale.distill.batches import Batch
    from kdscale.distill.loader import Loader
    from kdscale.types import DenseTargets, Head, SparseTargets

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Cache",
    "DenseTargets",
    "Head",
    "KdscaleError",
    "Loader",
    "LossParts",
    "SparseTargets",
    "distillation_loss",
    "loss_parts",
    "model_inputs",
    "open_cache",
]

_MODULES = {
    "kdscale.api.cache": ("Cache", "open_cache"),
    "kdscale.api.loss": ("LossParts", "distillation_loss", "loss_parts", "model_inputs"),
    "kdscale.distill.batches": ("Batch",),
    "kdscale.distill.loader": ("Loader",),
    "kdscale.types": ("DenseTargets", "Head", "SparseTargets"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
