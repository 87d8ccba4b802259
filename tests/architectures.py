"""Tiny models of every text architecture of the installed transformers.

Sizes are cut where a config has them; windows and chunks are short, so that they bite in rows of a
few dozen tokens. Weights are random and large, so that attention matters.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

VOCAB = 96
CAUSAL = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
MASKED = tuple(sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES))
_PARAMETERS = 140_000_000  # of the largest that is built

_WIDTH, _HEADS, _LAYERS, _INNER, _WINDOW, _EXPERTS = 32, 4, 4, 64, 16, 4
_SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "embedding_size"),
        _WIDTH,
    ),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "encoder_width"), _WIDTH),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), _LAYERS
    ),
    **dict.fromkeys(("num_decoder_layers", "depth"), _LAYERS),
    **dict.fromkeys(("encoder_layers", "first_k_dense_replace"), 1),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        _HEADS,
    ),
    **dict.fromkeys(("encoder_attention_heads", "linear_num_value_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "n_groups"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "rotary_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), _INNER
    ),
    **dict.fromkeys(("ffn_hidden_size", "dff", "d_ff", "d_inner"), _INNER),
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), _EXPERTS
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k", "top_k_experts"), 2),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(
        ("sliding_window", "attention_chunk_size", "window_size", "local_attention"), _WINDOW
    ),
    **dict.fromkeys(("sliding_window_size", "chunk_size", "mamba_chunk_size"), _WINDOW),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "time_step_rank"), 8),
}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_MLA = {"head_dim": 8, "qk_head_dim": 16, "num_key_value_heads": _HEADS}
_GEMMA4 = {"layer_types": _ALTERNATING, "num_experts": None, "top_k_experts": None}
# Whatever a config needs besides. Windows that a config leaves off are switched on.
_OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _MLA),
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8}},
    **dict.fromkeys(("glm_moe_dsa", "longcat_flash", "minicpm3", "sarvam_mla", "youtu"), _MLA),
    "phi3": {"sliding_window": _WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3_moe": {"use_sliding_window": True},
    "mixtral": {"sliding_window": _WINDOW},
    "starcoder2": {"sliding_window": _WINDOW},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 8, "num_key_value_heads": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 8, "mamba_n_heads": 8, "mamba_n_groups": 1},
    "cohere_compass_text": {
        "layer_types": _ALTERNATING,
        "num_key_value_heads": 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _ALTERNATING
        },
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "dots1": {"n_routed_experts": _EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": _ALTERNATING},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "bailing_hybrid": {**_MLA, "layer_group_size": 2},
    "kimi_linear": {**_MLA, "linear_num_heads": 4, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": _HEADS, "layer_types": _ALTERNATING},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        **dict.fromkeys(("ple_embed_dim", "hc_lowrank", "indexer_head_dim"), 8),
        **dict.fromkeys(("indexer_n_heads", "heads_per_ngram"), 2),
        "indexer_kv_heads": 1,
        **dict.fromkeys(("indexer_budget", "indexer_compress_ratio"), 4),
        **dict.fromkeys(("ngram_vocab_size_base", "split_ngram_parts"), 128),
    },
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "esm": {"vocab_size": VOCAB, "mask_token_id": 1},
    "esmc": {"num_key_value_heads": _HEADS},
    "neomme": {"head_dim": 16},
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_embds": False,
        "is_decoder": True,
        "num_buckets": 2,
    },
    "xlm": {"emb_dim": _WIDTH, "n_words": VOCAB, "causal": True},
    "flaubert": {"emb_dim": _WIDTH, "n_words": VOCAB},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
    },
}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


# What is not built small: a config without sizes, a package that is missing, other kinds of input.
NOT_BUILT = {
    *("blt", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "musicgen"),
    *("musicgen_melody", "moss_transcribe_diarize", "phi4_multimodal", "zamba", "dots3_note"),
    *("bailing_hybrid", "kimi_linear"),
    *("perceiver", "reformer"),  # as masked language models
}


class TooLargeError(Exception):
    """Error of an architecture whose config has no sizes to reduce."""


def tiny_config(kind: str, **options: Any) -> Any:
    """Return a small config of the model type `kind`, with `options`."""
    cls = CONFIG_MAPPING[kind]
    default = cls()
    text = getattr(default, "text_config", None)
    if text is not None and text is not default:
        found = cls(text_config=tiny_config(text.model_type, **options).to_dict())
    else:
        has = {name for name in _SIZES if isinstance(vars(default).get(name), int)}
        sizes = {name: _SIZES[name] for name in has}
        found = cls(**{**sizes, **dict.fromkeys(_SPECIAL, 0), **_OPTIONS.get(kind, {}), **options})
    return found


def tiny_model(kind: str, masked: bool = False, **options: Any) -> PreTrainedModel:
    """Return a small float32 model of a type, causal or `masked`, with large random weights."""
    config = tiny_config(kind, **options)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    if not masked and "is_decoder" in vars(config):
        config.is_decoder = True
    config.architectures = [auto._model_mapping[type(config)].__name__]
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > _PARAMETERS:
        raise TooLargeError(f"{size:,} parameters")
    torch.manual_seed(0)
    return strengthen(auto.from_config(config, dtype=torch.float32)).eval()


@torch.no_grad()
def strengthen(model: PreTrainedModel) -> PreTrainedModel:
    """Give every matrix of `model` random values, so that attention and positions matter.

    The values keep the size of activations; vectors stay as they are.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values * 1.5 / parameter.shape[-1] ** 0.5)
        elif not parameter.isfinite().all() or parameter.abs().max() > 1e3:
            parameter.zero_()  # left as the memory was
    return model
