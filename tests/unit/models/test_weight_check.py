"""Weights that are damaged, or not those of their config: refused from headers and in loading."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import reference_to
from kdscale.models.init.plan import build_student
from kdscale.models.load import build_model, load_config_of, load_model, make_config
from kdscale.models.stored_tensors import check_weights
from kdscale.models.tasks import TaskSpec, set_task
from tests.unit.models.teachers import LLAMA_LIKE, TOKENIZER, files, make_teacher, plan

FILE = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 13\n"
CLASSIFIER = TaskSpec("sequence-classification", ("a", "b", "c"))

Damage = Callable[[Path], None]


def edit(**fields: Any) -> Damage:
    def act(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return act


def write(content: bytes) -> Damage:
    return lambda folder: (folder / FILE).write_bytes(content) and None


def cut(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])


def without(name: str) -> Damage:
    def act(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        del tensors[name]
        save_file(tensors, folder / FILE)

    return act


def shard(damage: Damage) -> Damage:
    """Several files, and something wrong with one."""

    def act(folder: Path) -> None:
        model = load_model(folder)
        (folder / FILE).unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        name = sorted(folder.glob("*.safetensors"))[1]
        name.rename(folder / FILE)
        damage(folder)
        if (folder / FILE).exists():
            (folder / FILE).rename(name)

    return act


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a pointer": (write(POINTER), rf"{FILE} is a git-lfs pointer of"),
    "empty": (write(b""), rf"{FILE} is empty"),
    "cut": (cut, rf"{FILE} is damaged: it has"),
    "a web page": (write(b"<!doctype html><html>" * 9), rf"{FILE} of 189 bytes cannot be used"),
    "gone": (lambda folder: (folder / FILE).unlink(), "holds neither"),
    "a shard gone": (
        shard(lambda folder: (folder / FILE).unlink()),
        r"model-00002-of-\d+\.safetensors does not exist",
    ),
    "a shard cut": (shard(cut), r"model-00002-of-\d+\.safetensors is damaged"),
    "a vocabulary": (
        edit(vocab_size=120),
        rf"embed_tokens.weight' is \[97, 24\] in {FILE}, and the config asks for \[120, 24\]",
    ),
    "a hidden size": (edit(hidden_size=32), r"\[97, 24\] in .* asks for \[97, 32\]"),
    "heads": (edit(num_key_value_heads=4), r"k_proj.weight' is \[12, 24\] in .* for \[24, 24\]"),
    "layers": (edit(num_hidden_layers=6), "it has no weights for model.layers.5.input_layernorm"),
    "a tensor": (
        without("model.layers.1.mlp.up_proj.weight"),
        "it has no weights for model.layers.1.mlp.up_proj.weight",
    ),
    "untied": (edit(tie_word_embeddings=False), "it has no weights for lm_head.weight"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_teacher(folder, tie_word_embeddings=True)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_named_before_and_while_it_loads(
    whole: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    check_weights(str(folder), None, load_config_of(folder))
    assert reference_to(str(folder), None, "f").parameters > 0
    act, message = DAMAGES[damage]
    act(folder)
    for refuse in (
        lambda: check_weights(str(folder), None, load_config_of(folder)),
        lambda: reference_to(str(folder), None, "f"),
        lambda: load_model(folder),
    ):
        with pytest.raises(KdscaleError, match=message) as found:
            refuse()
        assert "\n" not in found.value.problem


def test_further_layers_in_the_files_are_left_alone(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    edit(num_hidden_layers=3)(folder)
    check_weights(str(folder), None, load_config_of(folder))
    load_model(folder)


def test_a_model_to_be_trained_further_may_lack_its_head_and_no_more(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, "llama")
    shape = load_config_of(tmp_path)
    set_task(shape, CLASSIFIER, 12)
    check_weights(str(tmp_path), None, shape, trained_further=True)
    load_model(tmp_path, config=shape)
    with pytest.raises(KdscaleError, match="is no sequence classifier: it has no weights for scor"):
        check_weights(str(tmp_path), None, shape)
    save_file({"other.weight": torch.ones(2)}, tmp_path / FILE)
    with pytest.raises(KdscaleError, match="is no sequence classifier"):
        check_weights(str(tmp_path), None, shape, trained_further=True)
    del teacher


def test_a_classifier_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    model = ModelConfig(architecture="llama", options=LLAMA_LIKE)
    config = make_config(model, 97, TOKENIZER["special_ids"], 12, CLASSIFIER)
    build_model(config, 0).save_pretrained(tmp_path)
    shape = load_config_of(tmp_path)
    set_task(shape, TaskSpec("sequence-classification", ("a", "b")), 12)
    with pytest.raises(KdscaleError, match=r"'score.weight' is \[3, 24\] in .* for \[2, 24\]"):
        check_weights(str(tmp_path), None, shape, trained_further=True)
    with pytest.raises(KdscaleError, match=r"'score.weight' is \[3, 24\]"):
        load_model(tmp_path, config=shape)


def test_a_student_is_refused_from_the_headers_of_its_teacher(tmp_path: Path) -> None:
    make_teacher(tmp_path)
    planned = plan(tmp_path, teacher_layers=[1])
    planned.check_sources(str(tmp_path), None)
    tensors = load_file(tmp_path / FILE)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, tmp_path / FILE)
    for source in (str(tmp_path), tmp_path.as_uri()):
        with pytest.raises(KdscaleError, match=f"'{name}' is quantised \\(F8_E4M3\\)"):
            planned.check_sources(source, None)
    save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / FILE)
    for source in (str(tmp_path), tmp_path.as_uri()):
        with pytest.raises(KdscaleError, match=f"lack 1 tensors .*, such as '{name}'"):
            planned.check_sources(source, None)


def test_two_tensors_that_the_config_takes_for_one_are_refused(tmp_path: Path) -> None:
    make_teacher(tmp_path, tie_word_embeddings=True)
    planned = plan(tmp_path, teacher_layers=[1])
    tensors = load_file(tmp_path / FILE)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, tmp_path / FILE)
    planned.check_sources(str(tmp_path), None)
    save_file(tensors | {"lm_head.weight": embedding + 1}, tmp_path / FILE)
    with pytest.raises(KdscaleError, match="are one tensor, and its files hold two different ones"):
        planned.check_sources(str(tmp_path), None)


def test_a_shared_tensor_may_be_stored_under_its_other_name(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / FILE)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / FILE)
    check_weights(str(tmp_path), None, load_config_of(tmp_path))
    student = build_student(plan(tmp_path, teacher_layers=[1]), files(tmp_path), None, 0)
    assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)
