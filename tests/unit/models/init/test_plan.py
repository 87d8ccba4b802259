"""Where students start: the teacher's tensors, embeddings, ties, and what is said of it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdscale.config.student import StudentConfig
from kdscale.config.training import OptimiserConfig, TrainingConfig, ZeroConfig
from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError
from kdscale.models.head import ModelWithHead
from kdscale.models.init.calibrate import calibrate
from kdscale.models.init.plan import build_student, plan_student
from kdscale.models.load import build_model, count_parameters
from kdscale.train.backends.base import make_backend
from tests.ranks import run_ranks
from tests.unit.models.teachers import (
    HIDDEN,
    LLAMA_LIKE,
    TOKENIZER,
    VOCAB,
    files,
    make_rows,
    make_teacher,
    narrow,
    plan,
    start,
)

IDS = torch.arange(10)[None]


def from_config(**fields: Any) -> dict[str, Any]:
    """Return a student of its own config: a llama of one layer, with `fields` of StudentConfig."""
    options = LLAMA_LIKE | {"num_hidden_layers": 1} | fields.pop("options", {})
    return {"model": {"architecture": "llama", "options": options}, **fields}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_student_of_all_layers_is_its_teacher(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    teacher = make_teacher(tmp_path, architecture, tie_word_embeddings=tied)
    student = start(tmp_path, teacher_layers={"kind": "ends", "count": 5})
    assert torch.equal(student(input_ids=IDS).logits, teacher(input_ids=IDS).logits)


def test_chosen_layers_are_copied_in_their_order_out_of_many_files(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, "gpt2")
    (tmp_path / "model.safetensors").unlink()
    teacher.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    theirs = teacher.state_dict()
    mine = start(tmp_path, teacher_layers=[3, 1]).state_dict()
    for name, tensor in mine.items():
        # The layer 0 of the student is the teacher's 3; its layer 1 has the same name there.
        assert torch.equal(tensor, theirs[name.replace(".h.0.", ".h.3.")]), name


def test_a_folder_without_the_models_prefix_is_read(tmp_path: Path) -> None:
    """As the one of gpt2 on the hub."""
    teacher = make_teacher(tmp_path, "gpt2")
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    assert "wte.weight" in bare
    save_file(bare, file)
    student = start(tmp_path, teacher_layers=[0, 1, 2, 3, 4])
    assert torch.equal(student(input_ids=IDS).logits, teacher(input_ids=IDS).logits)


def test_an_untied_head_starts_as_a_tied_teachers_embedding(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, tie_word_embeddings=True)
    student = start(tmp_path, teacher_layers=[0, 1, 2, 3, 4], tie_embeddings=False)
    assert student.lm_head.weight is not student.model.embed_tokens.weight
    assert torch.equal(student(input_ids=IDS).logits, teacher(input_ids=IDS).logits)


def test_a_tied_head_of_an_untied_teacher_is_the_embedding(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, tie_word_embeddings=False)
    student = start(tmp_path, teacher_layers=[2, 3], tie_embeddings=True)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert torch.equal(student.lm_head.weight, teacher.model.embed_tokens.weight)
    assert str(plan(tmp_path, teacher_layers=[2], tie_embeddings=True).provenance).endswith(
        "head: shared with the embedding"
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_random_student_can_take_the_embeddings(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    teacher = make_teacher(tmp_path, architecture, tie_word_embeddings=False)
    fields = from_config(copy_embeddings=True, tie_embeddings=tied)
    student = start(tmp_path, **fields)
    embedding, head = teacher.get_input_embeddings(), teacher.get_output_embeddings()
    assert torch.equal(student.get_input_embeddings().weight, embedding.weight)
    expected = embedding if tied else head
    assert torch.equal(student.get_output_embeddings().weight, expected.weight)
    # The rest is what the seed gives without a teacher.
    plain = build_model(plan(tmp_path, **fields).config, seed=9).state_dict()
    names = [name for name in plain if "layers" in name]
    assert names
    assert all(torch.equal(student.state_dict()[name], plain[name]) for name in names)


@pytest.mark.parametrize(
    ("multiple", "rows"), [(1, (0, 97, 0)), (16, (107, 0, 5)), (64, (107, 0, 21))]
)
def test_embeddings_padded_otherwise_share_the_rows_that_both_have(
    tmp_path: Path, multiple: int, rows: tuple[int, int, int]
) -> None:
    teacher = make_teacher(tmp_path, vocab_size=VOCAB + 10)
    fields = from_config(copy_embeddings=True)
    fields["model"]["pad_vocab_to_multiple_of"] = multiple
    planned = plan(tmp_path, **fields)
    mine = build_student(planned, files(tmp_path), None, seed=9).get_input_embeddings().weight
    theirs = teacher.get_input_embeddings().weight
    assert len(mine) == sum(rows)
    both = rows[0] + rows[1]
    assert torch.equal(mine[:both], theirs[:both])
    embedding = planned.provenance.groups[0]
    found = (embedding.copied, embedding.sliced, embedding.random)
    assert found == tuple(count * HIDDEN for count in rows)


def test_what_was_taken_is_said_group_by_group(tmp_path: Path) -> None:
    make_teacher(tmp_path, "qwen3", tie_word_embeddings=False)
    planned = plan(tmp_path, **narrow(intermediate_size=8))
    # 4 matrices of attention, its 2 norms, 3 matrices of the MLP, 2 norms.
    attention, inside = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 2 * 6, 3 * 8 * HIDDEN
    assert str(planned.provenance).splitlines() == [
        f"initial parameters: {2 * VOCAB * HIDDEN + 2 * attention + 5 * HIDDEN:,} copied, "
        f"{2 * inside:,} sliced",
        "  embedding <- teacher's embedding: 1 tensor, parameters 2,328 copied",
        f"  layer 0 <- teacher's layer 0: 11 tensors, parameters "
        f"{attention + 2 * HIDDEN:,} copied, {inside:,} sliced",
        f"  layer 1 <- teacher's layer 3: 11 tensors, parameters "
        f"{attention + 2 * HIDDEN:,} copied, {inside:,} sliced",
        "  norms <- teacher's norms: 1 tensor, parameters 24 copied",
        "  head <- teacher's head: 1 tensor, parameters 2,328 copied",
    ]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba"])
def test_every_parameter_of_a_random_student_is_counted_as_random(architecture: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if architecture == "mamba":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2}
    student = StudentConfig.model_validate(
        {"model": {"architecture": architecture, "options": sizes}}
    )
    planned = plan_student(student, None, **TOKENIZER)
    model = build_student(planned, None, None, seed=9)
    groups = planned.provenance.groups
    assert sum(group.random for group in groups) == count_parameters(model)
    assert sum(group.copied + group.sliced for group in groups) == 0


def test_the_same_seed_gives_the_same_student(tmp_path: Path) -> None:
    make_teacher(tmp_path)
    planned = plan(tmp_path, **from_config(copy_embeddings=True))
    one, same, other = (
        build_student(planned, files(tmp_path), None, seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one[name], other[name])


def weights_on_this_rank(folder: str, target: str, stage: int, fields: dict[str, Any]) -> None:
    """Build a narrower student as a training does, of a sharded teacher, and export it."""
    path = Path(folder)
    planned = plan(path, **fields)
    width = StudentConfig.model_validate(fields).width
    assert width is not None
    weights = files(path)
    kept = planned.keep(calibrate(width, path, None, make_rows(), current_rank()))
    training = TrainingConfig(
        steps=1,
        global_batch_size=2,
        micro_batch_size=1,
        optimiser=OptimiserConfig(),
        zero=ZeroConfig(stage=stage),
    )
    backend = make_backend(
        lambda: build_student(planned, weights, kept, seed=9),
        partial(ModelWithHead, vocab_size=VOCAB),
        training,
        1,
        current_rank(),
    )
    backend.export(Path(target))


@pytest.mark.dist
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_have_the_weights_of_one(tmp_path: Path, stage: int) -> None:
    """Also where ZeRO-3 partitions the student as it is built."""
    teacher = make_teacher(tmp_path / "teacher")
    fields = narrow(hidden_size=20, intermediate_size=8)
    run_ranks(
        weights_on_this_rank, 2, str(tmp_path / "teacher"), str(tmp_path / "student"), stage, fields
    )
    alone = start(tmp_path / "teacher", teacher, **fields).state_dict()
    together = load_file(tmp_path / "student" / "model.safetensors")
    assert set(together) == set(alone)
    assert all(torch.equal(together[name], alone[name]) for name in alone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            from_config(copy_embeddings=True, options={"hidden_size": 16, "head_dim": 4}),
            "student's embeddings have 16 columns, the teacher's 24",
        ),
        ({"teacher_layers": [0, 5]}, r"\[5\] are not among the teacher's layers 0 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    make_teacher(tmp_path)
    with pytest.raises(KdscaleError, match=message):
        plan(tmp_path, **fields)


def test_an_architecture_that_cannot_be_tied_is_refused() -> None:
    """RemBERT's embeddings are smaller than what goes into its head."""
    options = {
        "hidden_size": 16,
        "input_embedding_size": 8,
        "output_embedding_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "is_decoder": True,
    }
    student = StudentConfig.model_validate(
        {"model": {"architecture": "rembert", "options": options}, "tie_embeddings": True}
    )
    with pytest.raises(KdscaleError, match=r"true, but a RemBertForCausalLM keeps .* separate"):
        plan_student(student, None, **TOKENIZER)


def test_layers_of_several_kinds_are_not_mixed_up(tmp_path: Path) -> None:
    """The first layer of this teacher is dense, the others have experts."""
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    make_teacher(tmp_path, "qwen3_moe", mlp_only_layers=[0], **experts)
    assert plan(tmp_path, teacher_layers=[0, 2]).layers == [0, 2]
    with pytest.raises(KdscaleError, match="its layers are of several kinds"):
        plan(tmp_path, teacher_layers=[2, 3])


def test_files_that_lack_tensors_or_are_quantised_are_refused(tmp_path: Path) -> None:
    make_teacher(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    planned = plan(tmp_path, teacher_layers=[1])
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    with pytest.raises(KdscaleError, match=f"lack 1 tensors that the student .* as '{name}'"):
        build_student(planned, files(tmp_path), None, seed=0)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    with pytest.raises(KdscaleError, match=f"'{name}' is quantised \\(I8\\)"):
        build_student(planned, files(tmp_path), None, seed=0)
    file.unlink()
    with pytest.raises(KdscaleError, match=r"holds neither model\.safetensors nor"):
        build_student(planned, files(tmp_path), None, seed=0)
