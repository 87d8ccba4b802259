"""Adapters against peft and plain torch alone: training, frozen weights, folders, merging."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from kdscale.config.lora import LoraConfig
from kdscale.config.training import OptimiserConfig, TrainingConfig
from kdscale.distributed.rank import single_process_rank
from kdscale.errors import KdscaleError
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.models.head import ModelWithHead
from kdscale.models.load import count_parameters, load_config_of, load_model
from kdscale.models.lora import Base, add_adapters, linear_maps, published_parameters
from kdscale.models.quantise import check_quantisable
from kdscale.train.backends.base import Backend, make_backend
from kdscale.types import Head, SparseTargets
from tests.architectures import VOCAB, tiny_model

SEED, STEPS, ROWS, LENGTH = 5, 4, 3, 14
KD_WEIGHT, RATE, BETAS, DECAY, CLIP = 0.7, 1e-2, (0.9, 0.95), 0.1, 0.5
LORA = LoraConfig(r=4, alpha=12)
# Conv1D; norms of queries; soft caps and two kinds of norm; a window; experts.
KINDS = ("llama", "gpt2", "qwen3", "gemma", "gemma2", "gemma3_text", "qwen3_moe")
# Rounding may send a token to another expert, so that only the first step is the same.
ROUTED = "qwen3_moe"

Batch = tuple[torch.Tensor, SparseTargets]


def batches() -> list[Batch]:
    """Return ids [ROWS, LENGTH] and targets at the ROWS * (LENGTH - 1) positions with a label."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
        keys = torch.rand(ROWS * (LENGTH - 1), VOCAB, generator=generator)
        probs = torch.rand(ROWS * (LENGTH - 1), 5, generator=generator).softmax(dim=-1)
        found.append((ids, SparseTargets(keys.topk(5).indices, probs)))
    return found


def by_peft(model: PreTrainedModel, config: LoraConfig) -> tuple[list[float], Any]:
    """Train with peft and plain torch; return the losses and the peft model."""
    torch.manual_seed(SEED)
    named = config.target_modules
    adapted: Any = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            target_modules=named if isinstance(named, str) else list(named),
            task_type="CAUSAL_LM",
        ),
    ).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, betas=BETAS, weight_decay=DECAY)
    losses = []
    for ids, targets in batches():
        logits = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
        log_q = logits.flatten(0, 1).float().log_softmax(dim=-1)
        soft = -(targets.probs * log_q.gather(-1, targets.ids)).sum(dim=-1).mean()
        hard = -log_q.gather(-1, ids[:, 1:].flatten()[:, None]).mean()
        loss = KD_WEIGHT * soft + (1 - KD_WEIGHT) * hard
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses, adapted


def training(**fields: Any) -> TrainingConfig:
    optimiser = OptimiserConfig(learning_rate=RATE, betas=BETAS, weight_decay=DECAY, clip=CLIP)
    return TrainingConfig(
        steps=STEPS, global_batch_size=ROWS, micro_batch_size=ROWS, optimiser=optimiser, **fields
    )


def compute_loss(model: ModelWithHead, batch: Batch, step: int) -> torch.Tensor:
    ids, targets = batch
    hidden = model.hidden(ids, torch.ones_like(ids))[:, :-1].flatten(0, 1)

    def at(part: slice, _: Callable[[], torch.Tensor]) -> SparseTargets:
        return SparseTargets(targets.ids[part], targets.probs[part])

    labels = ids[:, 1:].flatten()
    return head_and_loss(hidden, model.head, labels, at, Objective(KD_WEIGHT)).objective


def by_kdscale(
    model: PreTrainedModel, config: LoraConfig, **fields: Any
) -> tuple[list[float], Backend, Any]:
    """Train with kdscale's back end and loss; return the losses, the back end and the adapters."""
    made: list[Any] = []

    def wrap(model: PreTrainedModel) -> ModelWithHead:
        made.append(add_adapters(model, config, SEED))
        return ModelWithHead(model, VOCAB)

    backend = make_backend(lambda: model, wrap, training(**fields), 1, single_process_rank())
    backend.model.train()
    losses = []
    for step, batch in enumerate(batches()):
        with backend.micro_batch(last=True):
            total = backend.model(compute_loss, batch, step)
            loss = total / (ROWS * (LENGTH - 1))
            backend.backward(loss)
        backend.step(RATE)
        losses.append(loss.item())
    return losses, backend, made[0]


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_losses_and_adapters_of_peft_and_plain_torch(kind: str) -> None:
    model = tiny_model(kind)
    expected, adapted = by_peft(copy.deepcopy(model), LORA)
    losses, backend, _ = by_kdscale(model, LORA)
    if kind == ROUTED:
        assert losses[:2] == pytest.approx(expected[:2], rel=1e-4)
        return
    assert losses == pytest.approx(expected, rel=2e-5)
    theirs = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    mine = backend.trained_values()
    assert {f"base_model.model.{name}" for name in mine} == set(theirs)
    for name, value in mine.items():
        found = theirs[f"base_model.model.{name}"]
        # A step of Adam is about the sign of a gradient: where that is nearly 0, rounding counts.
        torch.testing.assert_close(value, found, atol=2e-4, rtol=2e-3)
        assert not name.endswith("lora_B.default.weight") or value.abs().max() > RATE / 2, name


@pytest.mark.parametrize("fields", [{}, {"activation_checkpointing": True}])
def test_frozen_weights_stay_bit_for_bit(fields: dict[str, Any]) -> None:
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses, _, _ = by_kdscale(model, LORA, **fields)
    assert losses == by_kdscale(tiny_model("llama"), LORA)[0]
    after = {name.replace(".base_layer", ""): t for name, t in model.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())


def test_the_dropout_of_adapters_is_apart_from_the_models_own() -> None:
    model = tiny_model("gpt2")
    by_kdscale(model, LoraConfig(r=4, dropout=0.25), dropout=0.0)
    rates = {
        ("lora" if "lora" in name else "own", module.p)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout)
    }
    assert rates == {("lora", 0.25), ("own", 0.0)}


def saved(kind: str, folder: Path, **fields: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Train adapters, save base and adapters in `folder`; return base and adapted model."""
    model = tiny_model(kind)
    base = copy.deepcopy(model)
    _, backend, adapters = by_kdscale(model, LORA)
    copies = {"model": base} if fields.get("copies") else {}
    base.save_pretrained(folder / "elsewhere")
    adapters.save(
        folder / "student",
        model,
        backend.trained_values(),
        Base(str(folder / "elsewhere"), None, **copies),
    )
    return base, model.eval()


def logits_of(model: Any) -> torch.Tensor:
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_adapters_is_loaded_by_peft_and_merged_by_kdscale(
    kind: str, tmp_path: Path
) -> None:
    base, adapted = saved(kind, tmp_path)
    expected, folder = logits_of(adapted), tmp_path / "student"
    assert (expected - logits_of(base)).abs().max() > 0.1
    named = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32), str(folder)
    )
    torch.testing.assert_close(logits_of(theirs.eval()), expected, atol=1e-6, rtol=0)
    merged = load_model(folder).eval()
    assert type(merged) is type(base)
    assert count_parameters(merged) == count_parameters(base) == published_parameters(adapted)
    torch.testing.assert_close(logits_of(merged), expected, atol=5e-5, rtol=1e-4)
    assert load_config_of(folder).to_diff_dict() == base.config.to_diff_dict()


def test_a_copy_of_the_base_is_used_wherever_the_folder_is(tmp_path: Path) -> None:
    _, adapted = saved("llama", tmp_path, copies=True)
    moved = (tmp_path / "student").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    torch.testing.assert_close(
        logits_of(load_model(moved).eval()), logits_of(adapted), atol=5e-5, rtol=1e-4
    )


def test_merging_in_bfloat16_rounds_each_weight_once(tmp_path: Path) -> None:
    base, _ = saved("llama", tmp_path)
    whole = load_model(tmp_path / "student")
    half = load_model(tmp_path / "student", torch.bfloat16)
    name = "model.layers.0.mlp.up_proj.weight"
    change = whole.get_parameter(name) - base.get_parameter(name)
    expected = (base.get_parameter(name).bfloat16().float() + change).bfloat16()
    wrong = (half.get_parameter(name) != expected).float().mean()
    assert change.abs().max() > 0.01
    # But for sums on the edge between two values, as `change` was rounded too.
    assert wrong < 0.01
    assert all(b.dtype == torch.float32 for n, b in half.named_buffers() if "inv_freq" in n)


def test_all_linear_maps_but_the_head_have_adapters() -> None:
    for kind in KINDS:
        model = tiny_model(kind)
        expected, head = set(linear_maps(model)), model.get_output_embeddings()
        add_adapters(model, LORA, SEED)
        assert {
            n[: -len(".lora_A")] for n, _ in model.named_modules() if n.endswith(".lora_A")
        } == (expected)
        assert model.get_output_embeddings() is head


def test_the_modules_of_the_architecture_are_those_of_peft() -> None:
    model = tiny_model("qwen3")
    found = add_adapters(model, LoraConfig(target_modules="architecture"), SEED)
    assert found.peft_config.target_modules == {"q_proj", "v_proj"}
    with pytest.raises(KdscaleError, match=r"no target modules for the architecture 'olmo2'"):
        add_adapters(tiny_model("olmo2"), LoraConfig(target_modules="architecture"), SEED)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["q_proj", "v_porj"], r"'v_porj' matches nothing in a 'llama'\. There are q_proj, k_proj"),
        (["lm_head"], r"'lm_head' matches 'lm_head', which is none"),
        (["embed_tokens"], r"'embed_tokens' matches 'model\.embed_tokens', which is none"),
        (["self_attn"], r"'self_attn' matches 'model\.layers\.0\.self_attn', which is none"),
    ],
)
def test_target_modules_that_are_no_linear_maps_are_refused(names: list[str], problem: str) -> None:
    with pytest.raises(KdscaleError, match=problem):
        add_adapters(tiny_model("llama"), LoraConfig(target_modules=tuple(names)), SEED)


def test_the_same_seed_gives_the_same_adapters_whatever_happened_before() -> None:
    found = []
    for _ in range(2):
        torch.rand(7)
        model = tiny_model("llama")
        torch.rand(3)
        add_adapters(model, LORA, SEED)
        found.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any("lora_A" in name and p.abs().max() > 0 for name, p in found[0].items())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_head_takes_no_gradient_and_no_memory_for_one(
    frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(VOCAB, 32, requires_grad=not frozen)
    hidden = torch.randn(9, 32, requires_grad=True)
    buffers: list[tuple[int, ...]] = []

    def counted(make: Callable[..., torch.Tensor], tensor: torch.Tensor, **more: Any) -> Any:
        buffers.append(tuple(tensor.shape))
        return make(tensor, **more)

    for name in ("zeros_like", "empty_like"):
        monkeypatch.setattr(torch, name, partial(counted, getattr(torch, name)))
    loss = head_and_loss(hidden, Head(weight, None, VOCAB), torch.zeros(9).long())
    loss.objective.backward()
    assert buffers == ([(9, 32)] if frozen else [(9, 32), (VOCAB, 32)])
    assert (weight.grad is None) == frozen
    assert hidden.grad is not None


def test_four_bits_hold_the_frozen_maps_and_adapters_learn_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    # A CPU would repack weights where it evaluates, for sizes that these are not.
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    losses, backend, _ = by_kdscale(
        model := tiny_model("llama", **sizes), LORA.model_copy(update={"quantise": "nf4"})
    )
    whole = by_kdscale(tiny_model("llama", **sizes), LORA)[0]
    assert losses == pytest.approx(whole, rel=0.05)
    assert losses != pytest.approx(whole, rel=1e-4)
    for name in linear_maps(tiny_model("llama", **sizes)):
        held = model.get_submodule(f"{name}.base_layer").weight
        assert held.dtype == torch.uint8
        assert 2 * held.numel() == model.get_submodule(name).in_features * (
            model.get_submodule(name).out_features
        )
    learnt = [v.abs().max() for name, v in backend.trained_values().items() if "lora_B" in name]
    assert min(learnt) > RATE / 2


def test_four_bits_are_for_linear_maps_of_torch() -> None:
    with pytest.raises(KdscaleError, match=r"'transformer\.h\.0\.attn\.c_attn' of a 'gpt2' is"):
        check_quantisable(tiny_model("gpt2"))


def test_values_of_adapters_leave_out_learned_projections() -> None:
    model = tiny_model("llama")
    add_adapters(model, LORA, SEED)
    maps = [torch.nn.Linear(4, 6, bias=False)]
    backend = make_backend(
        lambda: model,
        lambda model: ModelWithHead(model, VOCAB, maps),
        training(),
        1,
        single_process_rank(),
    )
    trained = [name for name, p in backend.model.named_parameters() if p.requires_grad]
    assert "projections.0.weight" in trained
    assert [f"model.{name}" for name in backend.trained_values()] == trained[:-1]
