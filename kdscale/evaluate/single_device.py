"""Whole models side by side on one rank's device, for speed and samples."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from kdscale.distributed.rank import Rank
from kdscale.evaluate.results import environment
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import load_model

# A machine's memory is shared with the other ranks on it.
_SHARE_OF_MACHINE = 0.25
_SHARE_OF_DEVICE = 0.8


def load_models(
    references: Mapping[str, ModelReference], worker: Rank
) -> dict[str, PreTrainedModel]:
    """Load the models in evaluation mode on the rank's device.

    Where they do not fit together, the largest are left out, and a line is logged.
    """
    fitting = dict(references)
    room = _available_bytes(worker)
    while sum(r.parameters for r in fitting.values()) * worker.dtype.itemsize > room:
        largest = max(fitting, key=lambda name: fitting[name].parameters)
        worker.say(
            f"the {largest} does not fit one device beside the others: it is not timed there, and "
            "writes no samples"
        )
        del fitting[largest]
    return {
        name: load_model(reference.local(), worker.dtype, reference.revision)
        .to(worker.device)
        .eval()
        for name, reference in fitting.items()
    }


@torch.no_grad()
def write_text(
    model: PreTrainedModel,
    prompts: torch.Tensor,
    new_tokens: int,
    special_ids: Mapping[str, int],
    vocab_size: int,
    *,
    whole: bool = False,
    temperature: float | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Generate a continuation of `prompts` [B, T] int64: [B, at most new_tokens].

    It is padded after a text that has ended; `whole` texts do not end. Tokens are the likeliest, or
    drawn at `temperature`. Ids of `vocab_size` and above only pad the embedding.
    """
    embeddings = model.config.get_text_config().vocab_size
    # The model's own settings, such as a penalty on repetitions, would fill what is not given.
    model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens if whole else None,
        do_sample=temperature is not None,
        temperature=temperature,
        top_k=0 if temperature is not None else None,
        suppress_tokens=list(range(vocab_size, embeddings)) or None,
        **special_ids,
    )
    devices = [prompts.device] if prompts.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        written: Any = model.generate(prompts, attention_mask=torch.ones_like(prompts))
    found: torch.Tensor = written[:, prompts.shape[1] :]
    return found


def _available_bytes(worker: Rank) -> float:
    """Return the bytes that models may take here."""
    if worker.device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] * _SHARE_OF_DEVICE
    memory = environment()[1]["memory_bytes"]
    return float("inf") if memory is None else memory * _SHARE_OF_MACHINE
