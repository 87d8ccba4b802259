"""The distill stage of a loaded student: published weights, losses, the student before training.

On one rank, on two, sharded, and resumed at another size.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from kdscale.cache.read.reader import CacheReader
from kdscale.config import RunConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.student_init import StudentInit, init_student
from kdscale.distill.worker import DistillJob
from kdscale.distributed.rank import current_rank
from kdscale.models.hf_folder import read_marker
from kdscale.models.load import load_model
from kdscale.train import job as training_job
from tests.ranks import run_ranks
from tests.unit.distill.loaded import (
    NO_TEACHER,
    STEPS,
    Place,
    distil_config,
    distil_job,
    logged,
    make_causal,
    make_place,
)

pytestmark = pytest.mark.dist
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
