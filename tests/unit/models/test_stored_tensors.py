"""Students cut out of teachers of many architectures, whose files may use other names.

They are compared with the teacher after its layers were taken out by hand.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from kdscale.config.student import StudentConfig
from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.init.plan import InitPlan, build_student, plan_student
from kdscale.models.load import build_model, load_config_of, load_model, make_config
from kdscale.models.meta_model import MetaModel
from kdscale.models.stored_tensors import check_weights
from kdscale.models.tasks import TaskSpec
from tests.unit.models.teachers import LENGTH, TOKENIZER, VOCAB, files

LAYERS = 4
IDS = torch.arange(5, 5 + LENGTH)[None]
CAUSAL, MASKED = TaskSpec(), TaskSpec("masked-lm")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
OLD = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
LATENT = ROUTED | {
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 4),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "num_key_value_heads": 4,
}
CAUSAL_TEACHERS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gpt2": OLD,
    "gpt_neox": SIZES,
    "gpt_neo": {
        **dict.fromkeys(("num_layers", "num_heads", "window_size"), 4),
        "hidden_size": 32,
        "attention_types": [[["global", "local"], 2]],
    },
    "gptj": OLD | {"rotary_dim": 4},
    "opt": {"hidden_size": 32, "ffn_dim": 24, "num_hidden_layers": LAYERS}
    | {"num_attention_heads": 4, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "phi3": GROUPED,
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 4},
    "mixtral": GROUPED | LOCAL,
    "qwen2_moe": GROUPED | EXPERTS | {"shared_expert_intermediate_size": 8},
    "qwen3_moe": GROUPED | EXPERTS,
    "olmoe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": GROUPED | LOCAL,
    "deepseek_v2": SIZES | LATENT | {"head_dim": 4},
    "deepseek_v3": SIZES | LATENT,
    "gpt_oss": GROUPED | LOCAL | {"head_dim": 8, "sliding_window": 4},
    "glm4_moe": GROUPED | ROUTED,
    "phimoe": GROUPED | LOCAL,
    "mamba": {"hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 4},
}
MASKED_TEACHERS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "deberta-v2": SIZES,
    "modernbert": SIZES,
    "distilbert": {"dim": 32, "hidden_dim": 24, "n_layers": LAYERS, "n_heads": 4},
    "longformer": SIZES | {"attention_window": 4},
}
TEACHERS = [
    *((CAUSAL, name, options) for name, options in CAUSAL_TEACHERS.items()),
    *((MASKED, name, options) for name, options in MASKED_TEACHERS.items()),
]


def make_teacher(folder: Path, task_spec: TaskSpec, name: str, options: dict[str, Any]) -> Any:
    """Build a teacher, save it by transformers, and load it again."""
    model = ModelConfig(architecture=name, options=options)
    config = make_config(model, VOCAB, TOKENIZER["special_ids"], LENGTH, task_spec)
    made = build_model(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    made.save_pretrained(folder)
    return load_model(folder).eval()


def plan(folder: Path, task_spec: TaskSpec, **fields: Any) -> InitPlan:
    """Of a student that has passed all checks before a run."""
    shape = load_config_of(folder)
    check_weights(str(folder), None, shape)
    student = StudentConfig.model_validate(fields)
    planned = plan_student(student, shape, **TOKENIZER, task_spec=task_spec)
    planned.check_sources(str(folder), None)
    return planned


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    model.config.get_text_config().use_cache = False  # it would be by the number of a layer
    found: torch.Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


def take_out(teacher: Any, layers: list[int]) -> None:
    """Keep only `layers` of a teacher, in place."""
    text = teacher.config.get_text_config()
    prefix = MetaModel(teacher.config).prefix
    assert prefix is not None
    parent, _, name = prefix.rpartition(".")
    kept = [teacher.get_submodule(prefix)[layer] for layer in layers]
    setattr(teacher.get_submodule(parent), name, torch.nn.ModuleList(kept))
    for field in ("layer_types", "mlp_layer_types"):
        kinds = vars(text).get(field)
        if kinds:
            setattr(text, field, [kinds[layer] for layer in layers])
    text.num_hidden_layers = len(layers)


@pytest.mark.parametrize(("task_spec", "name", "options"), TEACHERS, ids=[t[1] for t in TEACHERS])
def test_a_student_is_its_teacher_without_some_layers(
    tmp_path: Path, task_spec: TaskSpec, name: str, options: dict[str, Any]
) -> None:
    teacher = make_teacher(tmp_path / "teacher", task_spec, name, options)
    own = {"model": {"architecture": name, "options": options}, "copy_embeddings": True}
    planned = plan(tmp_path / "teacher", task_spec, **own)
    copied: Any = build_student(planned, files(tmp_path / "teacher"), None, seed=9)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        mine, theirs = getattr(copied, part)(), getattr(teacher, part)()
        assert torch.equal(mine.weight, theirs.weight), part
    layers = [0, LAYERS - 1]
    planned = plan(tmp_path / "teacher", task_spec, teacher_layers=layers)
    student = build_student(planned, files(tmp_path / "teacher"), None, seed=9).eval()
    take_out(teacher, layers)
    assert torch.equal(logits(student), logits(teacher))
    student.save_pretrained(tmp_path / "student")
    again = load_model(tmp_path / "student").eval()
    assert torch.allclose(logits(again), logits(student), atol=1e-4)


@pytest.mark.parametrize("name", ["gpt_neox", "mixtral", "qwen2_moe", "granitemoe"])
def test_these_files_have_names_of_their_own(tmp_path: Path, name: str) -> None:
    """Or the sweep would show nothing."""
    teacher = make_teacher(tmp_path, CAUSAL, name, CAUSAL_TEACHERS[name])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) - set(teacher.state_dict())


REFUSED: dict[str, tuple[TaskSpec, dict[str, Any], str]] = {
    # Scales that follow from the number of the layer.
    "gpt2": (CAUSAL, OLD | {"scale_attn_by_inverse_layer_idx": True}, "scaling of .* is 0.1767"),
    "diffllama": (CAUSAL, GROUPED, "lambda_init of .*layers.1.self_attn is"),
    # Layers with experts and without, by turns.
    "llama4_text": (
        CAUSAL,
        GROUPED | LOCAL | {"head_dim": 8, "intermediate_size_mlp": 24},
        "its layers are of several kinds",
    ),
    # All layers are one.
    "albert": (MASKED, SIZES | {"embedding_size": 16}, "No list of 2 layers was found"),
    # Each part of the layers has a list of its own.
    "xlm": (MASKED, {"emb_dim": 32, "n_layers": LAYERS, "n_heads": 4}, "No list of 2 layers"),
    # The decoder's layers are not the ones that its config counts.
    "bart": (CAUSAL, {"d_model": 32}, "No list of 2 layers was found"),
    # A head over the attention of all layers.
    "esm": (MASKED, SIZES, r"contact_head.* is \[1, 8\], .* is \[1, 16\]: its size follows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_be_taken_out_are_refused_in_planning(name: str) -> None:
    task_spec, options, message = REFUSED[name]
    model = ModelConfig(architecture=name, options=options)
    shape = make_config(model, VOCAB, TOKENIZER["special_ids"], LENGTH, task_spec)
    student = StudentConfig.model_validate({"teacher_layers": [0, 3]})
    with pytest.raises(KdscaleError, match=message):
        plan_student(student, shape, **TOKENIZER, task_spec=task_spec)
