"""Students that start from a loaded model, against transformers alone."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from kdscale.config import RunConfig
from kdscale.distill.student_init import StudentInit, init_student
from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError
from kdscale.store import open_store, upload_folder
from tests.architectures import tiny_model
from tests.hub import FilesHub, files_hub, use_hub
from tests.unit.distill.loaded import NO_TEACHER, Place, distil_config, make_causal, make_place

LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FILES = ("config.json", "generation_config.json", "model.safetensors")
ARCHITECTURES = (
    *("llama", "qwen3", "gpt2", "gpt_neox", "opt", "mistral", "gemma2", "gemma3_text", "phi"),
    *("mixtral", "qwen3_moe", "gpt_oss", "falcon", "bloom", "mamba", "smollm3", "cohere", "olmo2"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("load"))


def start(place: Place, folder: Path, **student: Any) -> StudentInit:
    return start_of(place, distil_config(folder / "out", {"load": str(folder), **student}))


def start_of(place: Place, config: RunConfig) -> StudentInit:
    return init_student(config, place.data, NO_TEACHER, current_rank())


def ids(place: Place) -> torch.Tensor:
    return torch.arange(40)[None] * 5 % place.data.vocab_size


def logits(model: PreTrainedModel, place: Place) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids(place)).logits
    return found


def assert_same(found: PreTrainedModel, expected: PreTrainedModel, place: Place) -> None:
    """Every tensor, and the logits."""
    theirs = expected.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == torch.float32 or not tensor.is_floating_point()
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
    assert torch.equal(logits(found, place), logits(expected, place))


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_student_is_what_transformers_loads(
    kind: str, tied: bool, place: Place, tmp_path: Path
) -> None:
    size = place.data.vocab_size
    tiny_model(kind, vocab_size=size, tie_word_embeddings=tied).save_pretrained(tmp_path)
    found = start(place, tmp_path)
    assert found.is_stored
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same(found.build(), expected, place)
    assert_same(found.build(), expected, place)


@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_in_several_files_with_a_padded_vocabulary(
    tied: bool, place: Place, tmp_path: Path
) -> None:
    size = place.data.vocab_size + 17
    model = make_causal(tmp_path, "llama", size, **LLAMA, tie_word_embeddings=tied)
    (tmp_path / "model.safetensors").unlink()
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = start(place, tmp_path).build()
    assert found.get_input_embeddings().weight.shape[0] == size
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same(found, expected, place)
    stored = model.state_dict()
    assert all(torch.equal(t.bfloat16(), stored[n]) for n, t in found.state_dict().items())


def test_layers_are_those_of_the_loaded_model(place: Place, tmp_path: Path) -> None:
    model = make_causal(tmp_path, "llama", place.data.vocab_size, **LLAMA)
    found = start(place, tmp_path, layers=[3, 1])
    assert not found.is_stored
    model.model.layers = torch.nn.ModuleList([model.model.layers[3], model.model.layers[1]])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = 2
    assert_same(found.build(), model, place)


def test_a_narrower_student_keeps_the_loaded_models_own_dimensions(
    place: Place, tmp_path: Path
) -> None:
    model = make_causal(tmp_path, "llama", place.data.vocab_size, **LLAMA)
    width = {"intermediate_size": 20, "teacher_sharding": "none", "calibration_sequences": 4}
    found = start(place, tmp_path, layers={"kind": "even", "count": 4}, width=width).build()
    whole = model.model.layers[2].mlp.down_proj.weight
    cut = found.model.layers[2].mlp.down_proj.weight
    kept = [int((whole == column[:, None]).all(0).nonzero()) for column in cut.T]
    assert len(kept) == 20
    assert kept == sorted(kept)
    assert torch.equal(cut, whole[:, kept])


def test_a_tied_model_is_untied_with_the_same_logits(place: Place, tmp_path: Path) -> None:
    size = place.data.vocab_size
    model = make_causal(tmp_path, "llama", size, **LLAMA, tie_word_embeddings=True)
    found = start(place, tmp_path, tie_embeddings=False)
    assert not found.is_stored
    student = found.build()
    assert student.lm_head.weight is not student.model.embed_tokens.weight
    assert torch.equal(logits(student, place), logits(model, place))
    assert start(place, tmp_path, tie_embeddings=True).is_stored


def test_heads_of_other_tasks(place: Place, tmp_path: Path) -> None:
    size = place.data.vocab_size
    model = tiny_model("bert", masked=True, vocab_size=size)
    model.save_pretrained(tmp_path)
    config = distil_config(tmp_path / "out", {"load": str(tmp_path)}, task="masked-lm")
    found = start_of(place, config)
    assert found.is_stored
    expected = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same(found.build(), expected, place)


def test_what_a_task_needs_and_the_files_lack_starts_at_random_by_the_seed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = tiny_model("bert", masked=True, vocab_size=place.data.vocab_size)
    body.save_pretrained(tmp_path)
    monkeypatch.setattr("kdscale.data.rows.prepared.Prepared.classes", ("a", "b", "c"))
    classify = {
        "task": "sequence-classification",
        "data__labels": {"classes": ["a", "b", "c"]},
        "cache__codec": {"kind": "full"},
    }
    for student in ({}, {"layers": [0, 3]}):
        config = distil_config(tmp_path / "out", {"load": str(tmp_path), **student}, **classify)
        found = start_of(place, config)
        assert not found.is_stored
        one, two = found.build(), found.build()
        assert isinstance(one, type(AutoModelForSequenceClassification.from_config(found.config)))
        assert one.config.id2label == {0: "a", 1: "b", 2: "c"}
        head = one.classifier.weight
        assert torch.equal(head, two.classifier.weight)
        assert head.std() > 0
        mine, theirs = one.bert.encoder.layer, body.bert.encoder.layer
        last = mine[-1].output.dense.weight
        assert torch.equal(last, theirs[-1].output.dense.weight)
        assert len(mine) == (4 if not student else 2)


def test_files_that_lack_more_than_a_head_are_refused(place: Place, tmp_path: Path) -> None:
    make_causal(tmp_path, "llama", place.data.vocab_size, **LLAMA)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(KdscaleError, match=r"lack 1 tensors .*layers\.2\.mlp\.up_proj"):
        start(place, tmp_path)


def test_a_model_with_fewer_embeddings_or_quantised_is_refused(
    place: Place, tmp_path: Path
) -> None:
    size = place.data.vocab_size
    model = make_causal(tmp_path, "llama", size - 1, **LLAMA)
    with pytest.raises(KdscaleError, match=f"student has {size - 1} embeddings, .* {size} ids"):
        start(place, tmp_path)
    model.config.vocab_size = size
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(KdscaleError, match=r"student is quantised \(gptq\)"):
        start(place, tmp_path)


def test_layers_that_the_loaded_model_lacks_are_refused(place: Place, tmp_path: Path) -> None:
    make_causal(tmp_path, "llama", place.data.vocab_size, **LLAMA)
    with pytest.raises(KdscaleError, match=r"layers \[4\] are not among the loaded model's layers"):
        start(place, tmp_path, layers=[0, 4])
    with pytest.raises(KdscaleError, match="hidden_size 32 is more than the loaded model's 24"):
        start(place, tmp_path, width={"hidden_size": 32})


def test_a_student_ends_its_texts_as_the_run_does(place: Place, tmp_path: Path) -> None:
    end = place.data.special_ids["eos_token_id"]
    model = make_causal(tmp_path, "llama", place.data.vocab_size, **LLAMA)
    for own, expected in (([7, 9], end), ([7, end], [7, end]), (None, end)):
        model.config.eos_token_id = model.generation_config.eos_token_id = own
        model.save_pretrained(tmp_path)
        found = start(place, tmp_path).build()
        assert found.config.eos_token_id == expected
        assert found.generation_config.eos_token_id == expected
        # An embedding of a padding id would not be trained.
        assert found.get_input_embeddings().padding_idx is None


@pytest.mark.parametrize("kind", ["store", "hub"])
def test_a_student_in_a_store_or_on_a_hub(
    kind: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    model = make_causal(folder, "llama", place.data.vocab_size, **LLAMA)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub = FilesHub()
    with ExitStack() as stack:
        if kind == "hub":
            (folder / "pytorch_model.bin").write_bytes(b"not asked for")
            hub = stack.enter_context(files_hub("some/model", folder))
            use_hub(monkeypatch, hub, tmp_path / "hub")
        else:
            upload_folder(folder, open_store("memory://load"), "model")
        student: dict[str, Any] = {"load": "memory://load/model"}
        if kind == "hub":
            student = {"load": "some/model", "revision": "stable"}
        config = distil_config(tmp_path / "out", {**student, "layers": [0, 1, 2, 3]})
        assert torch.equal(logits(start_of(place, config).build(), place), logits(model, place))
        config = distil_config(tmp_path / "out", student)
        assert_same(start_of(place, config).build(), model, place)
        assert kind == "store" or set(hub.sent) == {*FILES}
        assert hub.revisions == ({"stable"} if kind == "hub" else set())
