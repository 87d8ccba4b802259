"""Small teachers of several architectures with random weights, as Hugging Face folders."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config.initial import WidthConfig
from kdscale.config.student import StudentConfig
from kdscale.config.teacher import ModelConfig
from kdscale.models.init.calibrate import measure
from kdscale.models.init.plan import InitPlan, build_student, plan_student
from kdscale.models.init.width import Kept
from kdscale.models.load import build_model, load_config_of, make_config
from kdscale.models.stored_tensors import StoredTensors
from kdscale.types import Rows

VOCAB, LENGTH = 97, 12
HIDDEN, NEURONS, HEADS, GROUPS, HEAD, LAYERS = 24, 20, 4, 2, 6, 5
TOKENIZER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "special_ids": {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    "seq_len": LENGTH,
}
LLAMA_LIKE = {
    "hidden_size": HIDDEN,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "initializer_range": 0.3,
}
GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}
SLICED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def make_teacher(folder: Path, architecture: str = "llama", **options: Any) -> PreTrainedModel:
    """Save a teacher to `folder`, with random biases and norms, so that none is like another."""
    own = GPT2 if architecture == "gpt2" else LLAMA_LIKE
    if architecture == "qwen3":
        own = own | {"head_dim": HEAD}
    model = ModelConfig(architecture=architecture, options=own | options)
    config = make_config(model, VOCAB, TOKENIZER["special_ids"], LENGTH)
    teacher = build_model(config, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    teacher.save_pretrained(folder)
    return teacher


def make_rows(count: int = 6) -> Rows:
    """Rows of random tokens: the even ones hold two documents, all end in padding."""
    random = np.random.default_rng(3)
    segments = np.ones((count, LENGTH), np.int32)
    segments[::2, 5:] = 2
    segments[:, -2:] = 0
    return Rows(
        sample_ids=random.integers(256, size=(count, 16), dtype=np.uint8),
        input_ids=random.integers(VOCAB, size=(count, LENGTH), dtype=np.int32),
        segment_ids=segments,
        loss_mask=segments > 0,
        byte_counts=np.ones(count),
    )


def plan(folder: Path, **student: Any) -> InitPlan:
    """Return the plan of a student of the teacher in `folder`."""
    config = StudentConfig.model_validate(student)
    return plan_student(config, load_config_of(folder), **TOKENIZER)


def start(folder: Path, teacher: PreTrainedModel | None = None, **student: Any) -> PreTrainedModel:
    """Return a student of the teacher in `folder`; a narrower one needs `teacher` itself too."""
    planned, kept = plan(folder, **student), None
    if teacher is not None:
        kept = keep(planned, teacher)
    return build_student(planned, files(folder), kept, seed=9).eval()


def files(folder: Path) -> StoredTensors:
    """Open the weights of the teacher in `folder`."""
    return StoredTensors.open(folder, load_config_of(folder))


def keep(planned: InitPlan, teacher: PreTrainedModel) -> Kept:
    """Return the dimensions that the plan keeps of `teacher` by its own activations."""
    return planned.keep(measure(teacher, make_rows(), torch.device("cpu")))


def narrow(**sizes: int) -> dict[str, Any]:
    """Fields of a student of two layers with these sizes."""
    return {"teacher_layers": [0, 3], "width": WidthConfig(**sizes).model_dump()}
