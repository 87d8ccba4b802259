"""The student's objective from a live teacher and from the cache, on one rank and on two."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from kdscale.cache.codecs import make_codec
from kdscale.config import RunConfig
from kdscale.config.cache import CodecConfig, FullCodec, TopkCodec
from kdscale.config.live import HiddenConfig
from kdscale.config.teacher import ModelConfig
from kdscale.config.training import OptimiserConfig, TrainingConfig, ZeroConfig
from kdscale.losses.fused import head_and_loss
from kdscale.models.build import build_model, load_model, make_config
from kdscale.models.folder import ModelReference
from kdscale.models.forward import compute_logits, model_inputs, next_token_labels
from kdscale.models.head import TrainedModel
from kdscale.student.hidden import make_hidden_loss
from kdscale.student.objective import DistillationLoss, LabelsLoss
from kdscale.student.steps import MicroBatch
from kdscale.student.targets import LiveTeacher
from kdscale.train.backend import make_backend
from kdscale.workers import current_worker
from tests.ranks import run_ranks
from tests.runs import tiny_config

VOCAB, LENGTH, ROWS = 50, 12, 3
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def model(seed: int, width: int) -> Any:
    options = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = ModelConfig(architecture="llama", options=options)
    found = build_model(make_config(config, VOCAB, SPECIAL, LENGTH), seed)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found


def reference(folder: str) -> ModelReference:
    return ModelReference("0" * 16, folder, None, "0" * 16, 0)


def config(**distill: Any) -> RunConfig:
    raw = tiny_config(Path("corpus"), "output")
    raw["distill"] = {**raw["distill"], **distill}
    return RunConfig.model_validate(raw)


def batch(codec_config: CodecConfig | None = None, teacher: Any = None) -> MicroBatch:
    """Rows with a mask, and what a codec keeps of the teacher's distributions."""
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
    return MicroBatch(ids, segments, mask, payload, entropy)


def values(found: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> dict[str, float]:
    return {name: float(value) for name, value in found[1].items()}


def live_values(folder: str, stage: int, **distill: Any) -> dict[str, float]:
    """What is logged with a live teacher, sharded or whole, and the gradient's size."""
    worker = current_worker()
    run = config(targets="live", **distill)
    hidden = None
    if run.distill.live.hidden is not None:
        hidden = make_hidden_loss(run.distill.live.hidden, (2, 2), (8, 16))
    teacher = LiveTeacher(
        reference(folder), worker, ZeroConfig(stage=stage), VOCAB, with_layers=hidden is not None
    )
    maps = hidden.projections(seed=4) if hidden is not None else []
    student = TrainedModel(model(1, 8), VOCAB, maps)
    loss = DistillationLoss(run, make_codec(FullCodec(), VOCAB), teacher, hidden)
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
    """KL (times T^2) and cross-entropy over all targets, from whole logits in float64."""
    rows = batch()
    student, teacher = model(1, 8), load_model(folder)
    with torch.no_grad():
        z, y = (
            compute_logits(m, rows.ids, rows.segments, VOCAB)[rows.mask].double()
            for m in (student, teacher)
        )
    p, log_q = (y / temperature).softmax(-1), (z / temperature).log_softmax(-1)
    labels = next_token_labels(rows.ids)[rows.mask]
    cross_entropy = torch.nn.functional.cross_entropy(z, labels, reduction="sum")
    return float((p * (p.log() - log_q)).sum() * temperature**2), float(cross_entropy)


def test_a_live_teacher_gives_the_full_distribution(folder: str) -> None:
    kl, cross_entropy = dense(folder, 1.0)
    found = live_values(folder, 0, loss={"kd_weight": {"start": 0.25}})
    assert found["kl"] == pytest.approx(kl, rel=1e-4)
    assert found["ce_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    warm = live_values(folder, 0, live={"temperature": {"start": 2.0}})
    assert warm["kl"] == pytest.approx(dense(folder, 2.0)[0], rel=1e-4)
    reverse = live_values(folder, 0, loss={"divergence": {"kind": "reverse_kl"}})
    assert "kl" not in reverse
    assert reverse["loss"] == pytest.approx(reverse["divergence"])


@pytest.mark.parametrize("codec", [FullCodec(), TopkCodec(k=VOCAB)], ids=str)
def test_the_cache_gives_what_the_live_teacher_gives(folder: str, codec: CodecConfig) -> None:
    """Where the codec keeps the whole distribution."""
    rows = batch(codec, load_model(folder))
    loss = DistillationLoss(config(), make_codec(codec, VOCAB), None)
    found = values(loss(TrainedModel(model(1, 8), VOCAB), rows, 0))
    kl, cross_entropy = dense(folder, 1.0)
    assert found["kl"] == pytest.approx(kl, rel=0.005)
    assert found["ce_loss"] == pytest.approx(cross_entropy, rel=1e-4)


def test_the_control_learns_from_labels_alone(folder: str) -> None:
    found = values(LabelsLoss()(TrainedModel(model(1, 8), VOCAB), batch(), 0))
    assert found["loss"] == found["ce_loss"] == pytest.approx(dense(folder, 1.0)[1], rel=1e-4)


HIDDEN = {"live": {"hidden": {"kind": "mse", "weight": 0.5}}}


def test_hidden_states_are_compared_layer_by_layer(folder: str) -> None:
    plain, found = live_values(folder, 0), live_values(folder, 0, **HIDDEN)
    assert found["loss"] == pytest.approx(plain["loss"] + 0.5 * found["hidden"], rel=1e-5)
    assert found["kl"] == pytest.approx(plain["kl"], rel=1e-5)
    rows, expected = batch(), 0.0
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


def sharded(folder: str) -> list[dict[str, float]]:
    return [live_values(folder, 3), live_values(folder, 3, **HIDDEN)]


@pytest.mark.dist
def test_a_sharded_live_teacher_is_the_whole_one(folder: str) -> None:
    whole = [live_values(folder, 0), live_values(folder, 0, **HIDDEN)]
    for found in run_ranks(sharded, 2, folder):
        for one, other in zip(found, whole, strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def trained_maps(folder: str, stages: list[int]) -> dict[int, dict[str, Any]]:
    """Hidden losses of four steps for each ZeRO stage, on rows shared by the ranks, and what the
    exported student's files hold."""
    worker, found = current_worker(), {}
    loss = make_hidden_loss(HiddenConfig(), (2, 2), (8, 16))
    rows = batch()
    with torch.no_grad():
        teacher = TrainedModel(load_model(folder), VOCAB)
        theirs = [x[rows.mask] for x in teacher.hidden_and_layers(rows.ids, rows.segments)[1]]

    labels = next_token_labels(rows.ids)[rows.mask]

    def objective_of(student: TrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, layers = student.hidden_and_layers(rows.ids, rows.segments)
        on_labels = head_and_loss(hidden[rows.mask], student.head, labels).objective
        on_layers = loss(student.projections, [x[rows.mask] for x in layers], theirs)
        return on_labels + on_layers, on_layers.detach()

    for stage in stages:
        training = TrainingConfig(
            steps=4,
            batch_rows=ROWS * worker.world_size,
            optimiser=OptimiserConfig(weight_decay=0.0),
            zero=ZeroConfig(stage=stage),
        )
        wrap = partial(TrainedModel, vocab_size=VOCAB, projections=loss.projections(seed=4))
        backend = make_backend(partial(load_model, f"{folder}/student"), wrap, training, 1, worker)
        values = []
        for _ in range(4):
            with backend.micro_batch(last=True):
                objective, on_layers = backend.model(objective_of)
                backend.backward(objective / worker.world_size)
            backend.step(1e-2)
            values.append(float(on_layers))
        out = Path(folder) / f"export-{worker.world_size}-{stage}"
        backend.export(out)
        worker.barrier()
        with safe_open(out / "model.safetensors", framework="pt") as file:
            found[stage] = {"values": values, "names": sorted(file.keys())}
    return found


@pytest.mark.dist
def test_learned_maps_are_trained_by_every_back_end_and_left_out_of_the_student(
    folder: str,
) -> None:
    model(1, 8).save_pretrained(f"{folder}/student")
    alone = trained_maps(folder, [0])[0]
    assert alone["values"][-1] < 0.95 * alone["values"][0]
    with safe_open(f"{folder}/student/model.safetensors", framework="pt") as file:
        assert alone["names"] == sorted(file.keys())
    for found in run_ranks(trained_maps, 2, folder, [0, 1, 3]):
        for stage, one in found.items():
            assert one["values"] == pytest.approx(alone["values"], rel=1e-4), stage
            assert one["names"] == alone["names"], stage
