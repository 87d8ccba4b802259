"""Settings of small runs, made without a corpus or a teacher at hand."""

import json
from functools import cache
from typing import Any

from kdscale.config import RunConfig
from kdscale.plan.hardware import find_hardware
from kdscale.plan.inputs import PlanInputs, read_inputs
from tests.changes import changed

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tree(**changes: Any) -> dict[str, Any]:
    """Return a run of two small llamas; `changes` are dotted keys with `__` for the dot."""
    found: dict[str, Any] = {
        "name": "small",
        "output": "runs/small",
        "data": {"seq_len": 32, "tokenizer": {"kind": "train", "vocab_size": 512}},
        "teacher": {
            "model": {"architecture": "llama", "options": dict(LLAMA)},
            "training": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 4},
        },
        "cache": {"sequences_per_shard": 16, "sequences_per_chunk": 8},
        "distill": {
            "student": {
                "model": {
                    "architecture": "llama",
                    "options": {**LLAMA, "num_hidden_layers": 1, "tie_word_embeddings": True},
                }
            },
            "training": {"steps": 20, "global_batch_size": 8, "micro_batch_size": 4},
        },
    }
    return changed(found, changes)


def setting(hardware: str = "H100", tokens: float = 32 * 640, **changes: Any) -> PlanInputs:
    """Return the inputs of `tree(**changes)`."""
    return _setting(hardware, tokens, json.dumps(tree(**changes)))


@cache
def _setting(hardware: str, tokens: float, config: str) -> PlanInputs:
    """Models are built for it, which takes most of a test's time."""
    found = RunConfig.model_validate_json(config)
    return read_inputs(found, find_hardware(hardware), tokens=tokens)
