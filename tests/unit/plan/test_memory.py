"""Memory by part, against the ZeRO paper's formulas, a real model's saved tensors, and by hand."""

from typing import Any

import pytest
import torch

from kdscale.config.training import ZeroConfig
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model
from kdscale.models.lora import add_adapters
from kdscale.plan.memory import (
    activations,
    capacity,
    capture_memory,
    distill_memory,
    evaluate_memory,
    gathered,
    loss_buffers,
    model_states,
    teacher_memory,
)
from tests.unit.plan.settings import LLAMA, setting

BIG = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
ENCODER = {key: value for key, value in LLAMA.items() if "key_value" not in key}


def kept_for_backward(model: ModelWithHead, ids: torch.Tensor, segments: torch.Tensor) -> int:
    """Bytes of storage that autograd holds after a forward, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.hidden(ids, segments)
    assert output.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", LLAMA | {"num_hidden_layers": 6}),
        ("qwen3", LLAMA | {"num_hidden_layers": 6, "head_dim": 16}),
        ("gpt2", {"n_embd": 64, "n_layer": 6, "n_head": 4}),
    ],
)
def test_activations_are_what_autograd_keeps(
    architecture: str, options: dict[str, Any], pack: bool
) -> None:
    found = setting(
        "cpu", teacher__model={"architecture": architecture, "options": options}, data__pack=pack
    )
    model = ModelWithHead(build_model(found.teacher_config, seed=0), 512)
    ids = torch.randint(512, (4, 32))
    segments = torch.ones_like(ids)
    segments[:, 16:] = 2 if pack else 1
    predicted = activations(found.teacher, 4, False, found)
    assert predicted == pytest.approx(kept_for_backward(model, ids, segments), rel=0.15)


@pytest.mark.parametrize("lora", [{}, {"dropout": 0.1}, {"target_modules": "architecture"}])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", LLAMA | {"num_hidden_layers": 6}),
        ("qwen3", LLAMA | {"num_hidden_layers": 6, "head_dim": 16}),
        ("gpt2", {"n_embd": 64, "n_layer": 6, "n_head": 4}),
    ],
)
def test_activations_beside_adapters_are_what_autograd_keeps(
    architecture: str, options: dict[str, Any], lora: dict[str, Any]
) -> None:
    found = setting(
        "cpu",
        teacher__model={"architecture": architecture, "options": options},
        distill__student={"teacher_layers": list(range(6)), "lora": lora},
        data__pack=False,
    )
    config = found.config.distill.student.lora
    assert config is not None
    model = build_model(found.student_config, seed=0)
    trained = add_adapters(model, config, seed=0).trained
    assert found.student.trained == trained
    ids = torch.randint(512, (4, 32))
    kept = kept_for_backward(ModelWithHead(model, 512), ids, torch.ones_like(ids))
    assert activations(found.student, 4, False, found) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_states_beside_adapters_are_theirs_but_for_the_weights(stage: Any) -> None:
    full, less = (
        setting("H100", distill__student={"teacher_layers": [0, 1], **more})
        for more in ({}, {"lora": {"r": 4}})
    )
    n, t = less.student.parameters, less.student.trained
    assert (full.student.parameters, full.student.trained) == (n, n)
    # Seven maps in each of two layers, in and out: q and o, k and v, the MLP's.
    assert t == 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 160))
    device, _ = model_states(less.student, ZeroConfig(stage=stage), 2, less)
    optimiser = 8 * t if stage == 0 else 12 * t // 2
    assert device["optimiser"] == optimiser
    assert device["gradients"] == {0: 4 * t, 1: 2 * t, 2: 2 * t, 3: 2 * t}[stage]
    assert device["weights"] == {0: 4, 1: 2, 2: 2, 3: 1}[stage] * (n + t)
    assert device.get("reduction buckets", 0) == {0: 0, 1: 2, 2: 6, 3: 6}[stage] * t


def bytes_of_a_step(model: torch.nn.Module) -> int:
    """Return the bytes of parameters, gradients and moments behind a real step of AdamW."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(input_ids=torch.randint(512, (1, 8))).logits.sum().backward()
    optimiser.step()
    tensors = [each for p in model.parameters() for each in (p, p.grad)]
    moments = [t for s in optimiser.state.values() for n, t in s.items() if n != "step"]
    return sum(tensor.nbytes for tensor in tensors + moments if tensor is not None)


def test_a_real_adapter_step_on_a_cpu_holds_what_is_planned() -> None:
    found = setting("cpu", distill__student={"teacher_layers": [0, 1], "lora": {"r": 4}})
    config = found.config.distill.student.lora
    assert config is not None
    model = build_model(found.student_config, seed=0)
    add_adapters(model, config, seed=0)
    states, _ = model_states(found.student, ZeroConfig(stage=0), 1, found)
    assert sum(states.values()) == bytes_of_a_step(model)


def test_four_bits_hold_the_linear_maps() -> None:
    plain, quantised = (
        setting("H100", distill__student={"teacher_layers": [0, 1], "lora": lora})
        for lora in ({"r": 4}, {"r": 4, "quantise": "nf4"})
    )
    maps = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    more, less = (
        model_states(each.student, ZeroConfig(stage=0), 1, each)[0] for each in (plain, quantised)
    )
    saved = more["weights"] - less["weights"]
    assert saved / maps == pytest.approx(4 - 0.516, abs=0.001)
    assert more["autocast weights"] - less["autocast weights"] == 2 * maps


def test_a_frozen_head_has_no_gradient() -> None:
    full, less = (
        setting("cpu", distill__student={"teacher_layers": [0, 1], **more})
        for more in ({}, {"lora": {}})
    )
    saved = loss_buffers(full.student, 4, full) - loss_buffers(less.student, 4, less)
    assert saved == 4 * 512 * 64


def test_checkpointing_keeps_a_vector_a_layer() -> None:
    found = setting("H100", teacher__model={"architecture": "llama", "options": BIG})
    shape = found.teacher
    whole, less = (activations(shape, 4, on, found) for on in (False, True))
    positions = 4 * 32
    # 8 h + 4 q + 4 I elements of two bytes.
    layer = 2 * positions * (8 * 1024 + 4 * 1024 + 4 * 4096)
    assert whole - less == 7 * layer - 2 * positions * 8 * 1024


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(1, lambda n: 2 + 2 + 12 / n), (2, lambda n: 2 + 16 / n), (3, lambda n: 18 / n)],
)
@pytest.mark.parametrize("ranks", [1, 4, 64])
def test_model_states_are_the_zero_papers_but_for_float32_gradients(
    stage: Any, expected: Any, ranks: int
) -> None:
    found = setting("H100", teacher__model={"architecture": "llama", "options": BIG})
    device, host = model_states(found.teacher, ZeroConfig(stage=stage), ranks, found)
    states = sum(device[part] for part in ("weights", "gradients", "optimiser"))
    assert states == pytest.approx(found.teacher.parameters * expected(ranks), rel=1e-6)
    assert host == {}
    if stage == 3:
        assert device["gathered weights"] == gathered(found.teacher, found)


def test_ddp_has_sixteen_bytes_a_parameter_on_any_number_of_ranks() -> None:
    found = setting("cpu")
    n = found.student.parameters
    alone, _ = model_states(found.student, ZeroConfig(stage=0), 1, found)
    many, _ = model_states(found.student, ZeroConfig(stage=0), 2, found)
    assert (sum(alone.values()), sum(many.values())) == (16 * n, 16 * n)


def test_offload_moves_the_optimiser_and_at_stage_3_the_weights() -> None:
    found = setting("H100")
    n = found.student.parameters
    device, host = model_states(found.student, ZeroConfig(stage=2, offload="cpu"), 2, found)
    assert "optimiser" not in device
    assert host == {"optimiser": 12 * n // 2 + 4 * n // 2}
    device, host = model_states(found.student, ZeroConfig(stage=3, offload="cpu"), 2, found)
    assert "weights" not in device
    assert host["weights"] == 2 * n // 2


def test_model_states_of_a_real_ddp_step_on_a_cpu() -> None:
    found = setting("cpu")
    model = build_model(found.student_config, seed=0)
    states, _ = model_states(found.student, ZeroConfig(stage=0), 1, found)
    assert sum(states.values()) == bytes_of_a_step(model)


def test_capture_on_a_gpu_holds_the_hidden_states_that_wait_and_a_chunk_of_logits() -> None:
    few, more = (
        setting("H100", cache__capture__queue_batches=waiting, cache__capture__micro_batch_size=4)
        for waiting in (1, 5)
    )
    states = 2 * 4 * 32 * 64
    assert capture_memory(few).device["hidden states"] == 3 * states
    assert capture_memory(more).device["hidden states"] == 7 * states
    assert capture_memory(more).device["logits"] == (2 + 4) * 4 * 32 * 512
    on_cpu = capture_memory(setting("cpu", cache__capture__micro_batch_size=4))
    assert on_cpu.device["hidden states"] == 4 * 4 * 32 * 64
    assert on_cpu.device["logits"] == 4 * 4 * 32 * 512
    assert on_cpu.host == {}
    long = capture_memory(setting("H100", cache__capture__micro_batch_size=1 << 20))
    assert long.device["logits"] == 6 << 28


def test_a_masked_language_model_has_logits_where_it_guesses() -> None:
    found = setting(
        "cpu",
        task="masked-lm",
        data__masking={"share": 0.1},
        teacher__model={"architecture": "bert", "options": dict(ENCODER)},
        distill__student__model={"architecture": "bert", "options": dict(ENCODER)},
        cache__capture__micro_batch_size=4,
        evaluate={"micro_batch_size": 8},
    )
    assert capture_memory(found).device["logits"] == 4 * 13 * 512
    assert evaluate_memory(found).device["logits"] == 3 * 4 * 26 * 512


def test_a_sharded_teacher_takes_its_share_and_what_is_gathered() -> None:
    whole = setting("H100", cache__capture__teacher_sharding="none")
    shared = setting("H100", cache__capture__workers={"count": 4, "gpus": 1})
    n = whole.teacher.parameters
    assert capture_memory(whole).device["weights"] == 2 * n
    assert capture_memory(whole).device["gathered weights"] == 0
    assert capture_memory(shared).device["weights"] == 2 * n // 4
    assert capture_memory(shared).device["gathered weights"] == 2 * n
    assert capture_memory(whole).device["head"] == 0
    assert capture_memory(shared).device["head"] == 2 * 512 * 64


def test_the_reader_takes_its_budget_or_the_whole_cache() -> None:
    small = distill_memory(setting("H100"))
    row = 32 * (2 + 32 + 9)  # two head values, 16 ids of two bytes, ids, segments and mask
    assert small.host["cache reader"] == 640 * row
    large = distill_memory(setting("H100", tokens=1e9, distill__cache_memory_mib=64))
    assert large.host["cache reader"] == 64 << 20


def test_a_online_teacher_stands_beside_its_student() -> None:
    online = distill_memory(setting("H100", distill__targets="online")).device
    assert online["online teacher"] > 2 * setting("H100").teacher.parameters
    assert "online teacher" not in distill_memory(setting("H100")).device


def test_evaluation_holds_all_models() -> None:
    found = setting("H100", evaluate={"teacher_sharding": "none"})
    memory = evaluate_memory(found).device
    assert memory["weights"] == 2 * found.teacher.parameters
    assert memory["students"] == 2 * 2 * found.student.parameters


def test_an_existing_teacher_is_not_trained() -> None:
    found = setting("H100")
    assert teacher_memory(found) is not None
    tree = found.config.model_copy(
        update={"teacher": found.config.teacher.model_copy(update={"training": None})}
    )
    assert teacher_memory(found.with_config(tree)) is None


def test_ranks_share_a_machines_memory() -> None:
    one, two = (setting("cpu", cache__capture__workers={"count": count}) for count in (1, 2))
    cores = one.hardware.devices_per_node
    alone, shared = capacity("cache", one)[0], capacity("cache", two)[0]
    assert alone == pytest.approx(one.hardware.memory_gib * 0.92 * 2**30)
    assert shared == pytest.approx(alone / min(2, cores))


def test_packed_rows_need_a_mask_where_no_kernel_does_without() -> None:
    packed, single = setting("H100"), setting("H100", data__pack=False)
    assert not packed.has_mask(packed.student)
    blocks = activations(packed.student, 4, False, packed)
    assert blocks - activations(single.student, 4, False, single) == 16 * 4
    asked = setting("H100", distill__student__attention="sdpa")
    assert asked.has_mask(asked.student)
    assert not asked.has_mask(asked.teacher)
    repeated = 2 * (asked.student.queries - asked.student.keys)
    more = 2 * 4 * 32 * asked.student.layers * repeated + 3 * 4 * 32**2
    assert activations(asked.student, 4, False, asked) - blocks == more - 16 * 4
    bloom = {"architecture": "bloom", "options": {"hidden_size": 64, "n_layer": 1, "n_head": 4}}
    other = setting("H100", distill__student__model=bloom)
    assert other.has_mask(other.student)
    cpu = setting("cpu")
    assert cpu.has_mask(cpu.student)
