"""The student's objective from an online teacher and from the cache, on one rank and on two."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from kdscale.cache.codecs import make_codec
from kdscale.config import RunConfig
from kdscale.config.cache import CodecConfig, FullCodec, TopkCodec
from kdscale.config.online import HiddenConfig
from kdscale.config.training import OptimiserConfig, TrainingConfig, ZeroConfig
from kdscale.distill.batches import MicroBatch
from kdscale.distill.layer_losses import make_attention_loss, make_hidden_loss
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distill.targets import OnlineTeacher
from kdscale.distributed.rank import current_rank
from kdscale.models.attention_check import check_attention
from kdscale.models.forward import RowTensors, compute_logits, model_inputs
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import load_model
from kdscale.models.sequence_check import SequenceSpec
from kdscale.train.backends.base import make_backend
from tests.ranks import run_ranks
from tests.runs import tiny_config
from tests.small_llama import llama_config, strong_llama

VOCAB, LENGTH, ROWS = 50, 12, 3


def model(seed: int, width: int) -> Any:
    config = llama_config(VOCAB, LENGTH, width=width, heads=width // 4, layers=2)
    return strong_llama(config, seed)


def reference(folder: str) -> ModelReference:
    return ModelReference("0" * 16, folder, None, "0" * 16, 0)


def config(**distill: Any) -> RunConfig:
    raw = tiny_config(Path("corpus"), "output")
    raw["distill"] = {**raw["distill"], **distill}
    return RunConfig.model_validate(raw)


def batch(codec_config: CodecConfig | None = None, teacher: Any = None) -> MicroBatch:
    """Return a masked batch, and what a codec keeps of the teacher's distributions."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    segments = torch.ones_like(ids)
    segments[0, 5:] = 2
    mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.7
    mask[:, -1] = False
    payload, entropy = torch.zeros(ROWS, LENGTH, 0, dtype=torch.uint8), torch.zeros(ROWS)
    if codec_config is not None:
        codec = make_codec(codec_config, VOCAB)
        with torch.no_grad():
            logits = compute_logits(teacher, ids, segments, VOCAB).flatten(0, 1)
        noise = torch.rand(len(logits), codec.streams, generator=generator, dtype=torch.float64)
        encoded = codec.encode(logits, noise)
        payload = encoded.payload.view(ROWS, LENGTH, -1)
        entropy = (encoded.entropy.view(ROWS, LENGTH) * mask).sum(1) / mask.sum(1)
    rows = RowTensors(ids, segments, mask, torch.roll(ids, -1, dims=1))
    return MicroBatch(rows, payload, entropy)


def values(found: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> dict[str, float]:
    return {name: float(value) for name, value in found[1].items()}


def online_loss(
    folder: str, stage: int, **distill: Any
) -> tuple[DistillationLoss, Callable[[Any], ModelWithHead]]:
    """Return the loss with an online teacher, sharded or whole, and how its student is wrapped."""
    run = config(targets="online", **distill)
    online = run.distill.online
    hidden = make_hidden_loss(online.hidden, (2, 2), (8, 16)) if online.hidden else None
    attention = make_attention_loss(online.attention, (2, 2)) if online.attention else None
    zero = ZeroConfig(stage=stage)
    kind = SequenceSpec(VOCAB, VOCAB, LENGTH, packs=True, micro_batch_size=2)
    teacher = OnlineTeacher(
        reference(folder), current_rank(), zero, kind, run.distill.online.layer_outputs
    )
    loss = DistillationLoss(run, make_codec(FullCodec(), VOCAB), teacher, hidden, attention)
    wrap = partial(
        ModelWithHead,
        vocab_size=VOCAB,
        projections=hidden.projections(seed=4) if hidden else (),
        gives_attention=attention is not None,
    )
    return loss, wrap


def online_values(folder: str, stage: int, **distill: Any) -> dict[str, float]:
    """Return what is logged with an online teacher, and the gradient's size."""
    loss, wrap = online_loss(folder, stage, **distill)
    student = wrap(model(1, 8))
    objective, parts = loss(student, batch(), 0)
    objective.backward()
    norm = sum(float(p.grad.norm()) ** 2 for p in student.parameters() if p.grad is not None)
    return values((objective, parts)) | {"norm": norm**0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("teacher")
    model(0, 16).save_pretrained(where)
    return str(where)


def dense(folder: str, temperature: float) -> tuple[float, float]:
    """Return KL (times T^2) and cross-entropy over all targets, from whole logits in float64."""
    rows = batch().rows
    student, teacher = model(1, 8), load_model(folder)
    with torch.no_grad():
        z, y = (
            compute_logits(m, rows.ids, rows.segments, VOCAB)[rows.mask].double()
            for m in (student, teacher)
        )
    p, log_q = (y / temperature).softmax(-1), (z / temperature).log_softmax(-1)
    labels = torch.roll(rows.ids, -1, dims=1)[rows.mask]
    cross_entropy = torch.nn.functional.cross_entropy(z, labels, reduction="sum")
    return float((p * (p.log() - log_q)).sum() * temperature**2), float(cross_entropy)


def test_a_online_teacher_gives_the_full_distribution(folder: str) -> None:
    kl, cross_entropy = dense(folder, 1.0)
    found = online_values(folder, 0, loss={"kd_weight": {"start": 0.25}})
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    assert found["ce_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    warm = online_values(folder, 0, online={"temperature": {"start": 2.0}})
    assert warm["kl"] == pytest.approx(dense(folder, 2.0)[0], rel=1e-4)
    reverse = online_values(folder, 0, loss={"divergence": {"kind": "reverse_kl"}})
    assert "kl" not in reverse
    assert reverse["loss"] == pytest.approx(reverse["divergence"])


@pytest.mark.parametrize("codec", [FullCodec(), TopkCodec(k=VOCAB)], ids=str)
def test_the_cache_gives_what_the_online_teacher_gives(folder: str, codec: CodecConfig) -> None:
    """Where the codec keeps the whole distribution."""
    rows = batch(codec, load_model(folder))
    loss = DistillationLoss(config(), make_codec(codec, VOCAB), None)
    found = values(loss(ModelWithHead(model(1, 8), VOCAB), rows, 0))
    kl, cross_entropy = dense(folder, 1.0)
    assert found["kl"] == pytest.approx(kl, rel=0.005)
    assert found["ce_loss"] == pytest.approx(cross_entropy, rel=1e-4)


def test_the_baseline_learns_from_labels_alone(folder: str) -> None:
    found = values(LabelsLoss()(ModelWithHead(model(1, 8), VOCAB), batch(), 0))
    assert found["loss"] == found["ce_loss"] == pytest.approx(dense(folder, 1.0)[1], rel=1e-4)


HIDDEN = {"online": {"hidden": {"kind": "mse", "weight": 0.5}}}


def test_hidden_states_are_compared_layer_by_layer(folder: str) -> None:
    plain, found = online_values(folder, 0), online_values(folder, 0, **HIDDEN)
    assert found["loss"] == pytest.approx(plain["loss"] + 0.5 * found["hidden"], rel=1e-5)
    assert found["kl"] == pytest.approx(plain["kl"], rel=1e-5)
    rows, expected = batch().rows, 0.0
    maps = make_hidden_loss(HiddenConfig(), (2, 2), (8, 16)).projections(seed=4)
    with torch.no_grad():
        student, teacher = (
            m.base_model(
                **model_inputs(m, rows.ids, rows.segments), output_hidden_states=True
            ).hidden_states
            for m in (model(1, 8), load_model(folder))
        )
        for layer, map_ in enumerate(maps, 1):
            difference = map_(student[layer][rows.mask]) - teacher[layer][rows.mask]
            expected += (difference**2).mean(1).sum().item() / 2
    assert found["hidden"] == pytest.approx(expected, rel=1e-4)


def naive_attention(folder: str, kind: str, pairs: list[tuple[int, int]]) -> float:
    """From the weights of every head, query by query."""
    rows, total = batch().rows, 0.0
    with torch.no_grad():
        student, teacher = (
            m(**model_inputs(m, rows.ids, rows.segments), output_attentions=True).attentions
            for m in (eager(model(1, 8)), eager(load_model(folder)))
        )
    for mine, theirs in pairs:
        for row, query in rows.mask.nonzero().tolist():
            same = rows.segments[row] == rows.segments[row, query]
            q, p = (weights[row, :, query].mean(0) for weights in (student[mine], teacher[theirs]))
            seen = same & (torch.arange(LENGTH) <= query)
            assert p[~seen].abs().max() == 0
            p, q = p[seen], q[seen]
            found = (p * (p / q).log()).sum() if kind == "kl" else ((p - q) ** 2).sum()
            total += float(found) / len(pairs)
    return total


def eager(found: Any) -> Any:
    found.set_attn_implementation("eager")
    return found


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("pairs", [None, [(1, 0)]])
def test_attention_is_compared_layer_by_layer(
    folder: str, kind: str, pairs: list[tuple[int, int]] | None
) -> None:
    """Of a student with half of its teacher's heads, in rows with a mask and two documents."""
    attention = {"kind": kind, "weight": 0.5, "layers": pairs}
    plain, found = (
        online_values(folder, 0),
        online_values(folder, 0, online={"attention": attention}),
    )
    assert found["attention"] == pytest.approx(
        naive_attention(folder, kind, pairs or [(0, 0), (1, 1)]), rel=1e-4
    )
    assert found["loss"] == pytest.approx(plain["loss"] + 0.5 * found["attention"], rel=1e-5)
    assert found["kl"] == pytest.approx(plain["kl"], rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_targets_of_taid_lie_between_student_and_teacher(
    folder: str, temperature: float
) -> None:
    found = online_values(
        folder,
        0,
        online={"taid": {"start": 0.3}, "temperature": {"start": temperature}},
        loss={"kd_weight": {"start": 0.75}},
    )
    rows, student = batch().rows, model(1, 8)
    z = compute_logits(student, rows.ids, rows.segments, VOCAB)[rows.mask]
    with torch.no_grad():
        teacher = load_model(folder)
        y = compute_logits(teacher, rows.ids, rows.segments, VOCAB)[rows.mask]
    target = ((0.7 * z.detach() + 0.3 * y) / temperature).softmax(-1)
    on_target = -(target * (z / temperature).log_softmax(-1)).sum() * temperature**2
    kl, cross_entropy = dense(folder, temperature)
    labels = torch.roll(rows.ids, -1, dims=1)[rows.mask]
    on_labels = torch.nn.functional.cross_entropy(z, labels, reduction="sum")
    loss = 0.75 * on_target + 0.25 * on_labels
    loss.backward()
    norm = sum(float(p.grad.norm()) ** 2 for p in student.parameters()) ** 0.5
    assert found["taid_loss"] == pytest.approx(on_target.item(), rel=1e-4)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert found["ce_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert found["norm"] == pytest.approx(norm, rel=1e-4)
    # Of the teacher itself, so that it compares with a training without TAID.
    assert found["kl"] == pytest.approx(kl, rel=1e-4)


ATTENTION = {"online": {"attention": {"weight": 0.5}}}
TAID = {"online": {"taid": {}}}
LAYERS = {"hidden": {}, "attention": {"weight": 50}}
STAGES = [0, 1, 3]


def sharded(folder: str) -> list[dict[str, float]]:
    return [online_values(folder, 3, **fields) for fields in ({}, HIDDEN, ATTENTION, TAID)]


@pytest.mark.dist
def test_a_sharded_online_teacher_is_the_whole_one(folder: str) -> None:
    whole = [online_values(folder, 0, **fields) for fields in ({}, HIDDEN, ATTENTION, TAID)]
    for found in run_ranks(sharded, 2, folder):
        for one, other in zip(found, whole, strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def uneven(folder: str) -> dict[str, float]:
    """Several chunks of targets on the first rank, none on the second."""
    rank, rows = current_rank().rank, batch().rows
    loss, wrap = online_loss(folder, 3, online=LAYERS)
    mask = rows.mask if rank == 0 else torch.zeros_like(rows.mask)
    many = [x.repeat(40, 1) for x in (rows.ids, rows.segments, mask, rows.labels)]
    assert rank == 1 or int(many[2].sum()) > 3 * 256
    payload = torch.zeros(len(many[0]), LENGTH, 0, dtype=torch.uint8)
    return values(loss(wrap(model(1, 8)), MicroBatch(RowTensors(*many), payload, None), 0))


@pytest.mark.dist
def test_ranks_with_more_targets_than_others_do_not_wait_for_them(folder: str) -> None:
    whole = online_values(folder, 0, online=LAYERS)
    many, none = run_ranks(uneven, 2, folder)
    assert many == pytest.approx({name: 40 * whole[name] for name in many}, rel=1e-4)
    assert none == dict.fromkeys(many, 0.0)


def trained_on_layers(folder: str, stages: list[int]) -> dict[int, dict[str, Any]]:
    """Return losses on layers in four steps for each ZeRO stage, of student and of teacher.

    On sequences that the ranks share; and what the exported student's files hold.
    """
    worker, found = current_rank(), {}
    for stage in stages:
        training = TrainingConfig(
            steps=4,
            global_batch_size=ROWS * worker.world_size,
            optimiser=OptimiserConfig(weight_decay=0.0),
            zero=ZeroConfig(stage=stage),
        )
        loss, wrap = online_loss(folder, 3 if stage == 3 else 0, online=LAYERS)
        build = partial(load_model, f"{folder}/student")
        backend = make_backend(build, wrap, training, 1, worker)
        backend.model.train()
        with torch.no_grad():
            backend.model(check_attention, worker.device)
        steps = []
        for step in range(4):
            with backend.micro_batch(last=True):
                objective, parts = backend.model(loss, batch(), step)
                backend.backward(objective / worker.world_size)
            backend.step(1e-2)
            steps.append([float(parts[name]) for name in ("hidden", "attention")])
        out = Path(folder) / f"export-{worker.world_size}-{stage}"
        backend.export(out)
        worker.barrier()
        with safe_open(out / "model.safetensors", framework="pt") as file:
            found[stage] = {"steps": steps, "names": sorted(file.keys())}
        found[stage]["config"] = (out / "config.json").read_text()
    return found


@pytest.mark.dist
def test_losses_on_layers_train_every_back_end_and_leave_the_exported_student_alone(
    folder: str,
) -> None:
    model(1, 8).save_pretrained(f"{folder}/student")
    alone = trained_on_layers(folder, [0])[0]
    (hidden, attention), last = alone["steps"][0], alone["steps"][-1]
    assert last[0] < 0.95 * hidden
    assert last[1] < 0.95 * attention
    with safe_open(f"{folder}/student/model.safetensors", framework="pt") as file:
        assert alone["names"] == sorted(file.keys())
    assert alone["config"] == Path(folder, "student", "config.json").read_text()
    for found in [trained_on_layers(folder, [0]), *run_ranks(trained_on_layers, 2, folder, STAGES)]:
        for stage, one in found.items():
            for step, expected in zip(one["steps"], alone["steps"], strict=True):
                assert step == pytest.approx(expected, rel=1e-4), stage
            assert (one["names"], one["config"]) == (alone["names"], alone["config"]), stage
