"""Activation statistics against a forward written out by hand, one document at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kdscale.config.initial import WidthConfig
from kdscale.distributed.rank import current_rank
from kdscale.models.init.calibrate import calibrate, measure
from tests.ranks import run_ranks
from tests.unit.models.teachers import GROUPS, HEAD, HEADS, LAYERS, make_rows, make_teacher


def documents() -> list[torch.Tensor]:
    """Return the documents of `make_rows`, each [1, n], without padding."""
    rows = make_rows()
    return [
        torch.from_numpy(ids[segments == segment]).long()[None]
        for ids, segments in zip(rows.input_ids, rows.segment_ids, strict=True)
        for segment in (1, 2)
        if (segments == segment).any()
    ]


@torch.no_grad()
def activations(teacher: torch.nn.Module, ids: torch.Tensor) -> list[list[torch.Tensor]]:
    """Return the activations of one document in each layer, and |final norm| at the end.

    |norm| summed [n, H], |neurons| [n, I], norms of heads [n, A].
    """
    base, n = teacher.model, ids.shape[1]
    x = base.embed_tokens(ids)
    rotary = base.rotary_emb(x, torch.arange(n)[None])
    found = []
    for layer in base.layers:
        attention, first = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            projection(first).view(1, n, heads, HEAD).transpose(1, 2)
            for projection, heads in (
                (attention.q_proj, HEADS),
                (attention.k_proj, GROUPS),
                (attention.v_proj, GROUPS),
            )
        )
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        outputs = []
        for head in range(HEADS):
            scores = q[0, head] @ k[0, head // (HEADS // GROUPS)].T / HEAD**0.5
            scores += torch.full((n, n), -torch.inf).triu(1)
            outputs.append(scores.softmax(-1) @ v[0, head // (HEADS // GROUPS)])
        x = x + torch.cat(outputs, dim=-1) @ attention.o_proj.weight.T
        second = layer.post_attention_layernorm(x)
        inner = silu(layer.mlp.gate_proj(second)) * layer.mlp.up_proj(second)
        x = x + layer.mlp.down_proj(inner)
        norms = torch.stack([output.norm(dim=-1) for output in outputs], dim=-1)
        found.append([first[0].abs() + second[0].abs(), inner[0].abs(), norms])
    return [*found, [base.norm(x)[0].abs()]]


def test_statistics_are_means_over_the_tokens_of_documents(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path)
    found = measure(teacher, make_rows(), torch.device("cpu"))
    each = [activations(teacher, ids) for ids in documents()]
    for layer in range(LAYERS + 1):
        expected = [
            torch.cat(parts).mean(0).numpy()
            for parts in zip(*(e[layer] for e in each), strict=True)
        ]
        np.testing.assert_allclose(found.channels[layer], expected[0], rtol=1e-4)
        if layer < LAYERS:
            np.testing.assert_allclose(found.neurons[layer], expected[1], rtol=1e-4)
            np.testing.assert_allclose(found.heads[layer], expected[2], rtol=1e-4)


def test_a_measured_model_is_left_as_it_was(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path)
    measure(teacher, make_rows(), torch.device("cpu"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def statistics(folder: str, sharding: str) -> list[np.ndarray]:
    width = WidthConfig.model_validate({"hidden_size": 6, "teacher_sharding": sharding})
    found = calibrate(width, folder, None, make_rows(), current_rank())
    return [found.channels, found.neurons, found.heads]


@pytest.mark.dist
@pytest.mark.parametrize("sharding", ["none", "zero3"])
def test_a_teacher_on_two_ranks_has_the_same_statistics(tmp_path: Path, sharding: str) -> None:
    make_teacher(tmp_path)
    alone = statistics(str(tmp_path), sharding="none")
    first, second = run_ranks(statistics, 2, str(tmp_path), sharding)
    for mine, others, expected in zip(first, second, alone, strict=True):
        np.testing.assert_array_equal(mine, others)
        np.testing.assert_array_equal(mine, expected)
