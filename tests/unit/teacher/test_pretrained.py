"""Teachers that exist: taken as they are where they fit, trained further, or refused."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM, Qwen2Config

from kdscale.config.data import ChunksConfig
from kdscale.config.run import RunConfig
from kdscale.config.teacher import ModelConfig
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.data.tokenizer import adopt_tokenizer, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.models.load import build_model, load_config_of, make_config
from kdscale.models.tasks import TaskSpec, task_of
from kdscale.teacher.pretrained import check_teacher, config_to_train, own_tokenizer
from kdscale.teacher.train import build_teacher
from tests.unit.distill.loaded import make_causal
from tests.unit.train.overfitting import make_prepared, run, session

VOCAB, LENGTH = 60, 32
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
DECODER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
IDS = torch.arange(20)[None]
CHUNKS = {"length": 16, "pooling": "max"}


@dataclass
class Data:
    """What is asked of prepared data."""

    classes: tuple[str, ...] = ("a", "b")
    vocab_size: int = VOCAB

    @property
    def special_ids(self) -> dict[str, int]:
        return dict(SPECIAL)


def prepared(**fields: Any) -> Prepared:
    return cast(Prepared, Data(**fields))


def shape(task_spec: TaskSpec) -> Any:
    model = ModelConfig(architecture="bert", options=ENCODER)
    return make_config(model, VOCAB, SPECIAL, LENGTH, task_spec)


def run_config(folder: Path, *, trains: bool = False, **data: Any) -> RunConfig:
    training = {"steps": 1, "global_batch_size": 1}
    student = {"model": {"architecture": "bert", "options": ENCODER}}
    return RunConfig.model_validate(
        {
            "name": "a",
            "output": str(folder / "output"),
            "task": "sequence-classification",
            "data": {
                "labels": {},
                "tokenizer": {"kind": "teacher"},
                "seq_len": LENGTH,
                **data,
            },
            "teacher": {"load": str(folder), **({"training": training} if trains else {})},
            "cache": {"codec": {"kind": "full"}},
            "distill": {"student": student, "training": training},
        }
    )


def save(folder: Path, task_spec: TaskSpec) -> None:
    build_model(shape(task_spec), 0).save_pretrained(folder)


def test_a_classifier_of_the_same_classes_is_taken(tmp_path: Path) -> None:
    save(tmp_path, TaskSpec("sequence-classification", ("a", "b")))
    check_teacher(run_config(tmp_path), prepared())
    with pytest.raises(KdscaleError, match=r"tells \['a', 'b'\] apart, and the data has .*'c'"):
        check_teacher(run_config(tmp_path), prepared(classes=("a", "c")))
    with pytest.raises(KdscaleError, match=r"has 60 embeddings, but .* has 90 ids"):
        check_teacher(run_config(tmp_path), prepared(vocab_size=90))


def test_rows_longer_than_a_loaded_teachers_positions_are_refused(tmp_path: Path) -> None:
    config = shape(TaskSpec("sequence-classification", ("a", "b")))
    for positions in (LENGTH, LENGTH - 1):
        config.max_position_embeddings = positions
        config.save_pretrained(tmp_path)
        if positions == LENGTH:
            check_teacher(run_config(tmp_path), prepared())
    with pytest.raises(KdscaleError, match="teacher, a 'bert' of 31 positions, cannot take 32"):
        check_teacher(run_config(tmp_path), prepared())
    chunked = {"long_documents": "hierarchical", "chunks": CHUNKS}
    with pytest.raises(KdscaleError, match="not trained on documents in chunks"):
        check_teacher(run_config(tmp_path, **chunked), prepared())


def test_a_model_of_another_task_is_refused(tmp_path: Path) -> None:
    save(tmp_path, TaskSpec("masked-lm"))
    with pytest.raises(KdscaleError, match="is a masked language model, and the run's task is"):
        check_teacher(run_config(tmp_path), prepared())


def test_a_classifier_of_other_chunks_is_refused(tmp_path: Path) -> None:
    chunked = {"long_documents": "hierarchical", "chunks": CHUNKS}
    own = TaskSpec("sequence-classification", ("a", "b"), ChunksConfig.model_validate(CHUNKS))
    save(tmp_path, own)
    check_teacher(run_config(tmp_path, **chunked), prepared())
    other = chunked | {"chunks": {"length": 16, "pooling": "mean"}}
    with pytest.raises(KdscaleError, match="not trained on documents in chunks of 16 tokens"):
        check_teacher(run_config(tmp_path, **other), prepared())


def test_a_bare_encoder_is_trained_further_from_its_own_weights(tmp_path: Path) -> None:
    bare = AutoModel.from_config(shape(TaskSpec("masked-lm")))
    bare.save_pretrained(tmp_path)
    config = run_config(tmp_path, trains=True)
    found = config_to_train(config, prepared())
    assert task_of(found) == "sequence-classification"
    assert list(found.id2label.values()) == ["a", "b"]
    one, other = (build_teacher(config, prepared()) for _ in range(2))
    weights = one.base_model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in bare.state_dict().items())
    # The head starts at random, the same on every rank.
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert load_config_of(tmp_path).architectures == ["BertModel"]


def test_a_run_that_trains_its_tokenizer_needs_none(tmp_path: Path) -> None:
    config = run_config(tmp_path, trains=True)
    with (
        pytest.raises(KdscaleError, match="transformers can load no tokenizer of"),
        own_tokenizer(config),
    ):
        pass
    tokenizer = config.data.tokenizer.model_copy(update={"kind": "train"})
    own = config.model_copy(
        update={"data": config.data.model_copy(update={"tokenizer": tokenizer})}
    )
    with own_tokenizer(own) as folder:
        assert folder is None


def test_a_teachers_own_tokenizer_has_no_ids_beyond_its_embedding(tmp_path: Path) -> None:
    # transformers' class for the architecture would add <|endoftext|> as the id 300.
    train_tokenizer(["the river runs past the old mill " * 9] * 9, 300, tmp_path)
    rows = len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text(encoding="utf-8").replace("<|endoftext|>", "<|over|>")
        (tmp_path / name).write_text(text, encoding="utf-8")
    config = run_config(tmp_path, trains=True)
    Qwen2Config(vocab_size=rows).save_pretrained(tmp_path)
    with own_tokenizer(config) as folder:
        assert folder is not None
        assert adopt_tokenizer(folder, tmp_path / "copy").vocab_size == rows
    Qwen2Config(vocab_size=rows - 1).save_pretrained(tmp_path)
    with (
        pytest.raises(KdscaleError, match=rf"has ids beyond them: {rows - 1} '"),
        own_tokenizer(config),
    ):
        pass


def test_a_language_model_is_trained_further_from_what_transformers_loads(tmp_path: Path) -> None:
    """In its own stage: what learns nothing is published with the weights that it had."""
    place = make_prepared(tmp_path / "prepared")
    size = open_prepared(place).vocab_size + 5
    shape = {**DECODER, "tie_word_embeddings": True}
    loaded = make_causal(tmp_path / "model", "llama", size, **shape).eval()
    losses = {}
    for name, rate in (("still", 1e-30), ("learns", 1e-2)):
        job = session(
            tmp_path / name,
            steps=4,
            early_stopping=None,
            optimiser={"learning_rate": rate, "weight_decay": 0.0, "schedule": "constant"},
        )
        tree = job.config.model_dump(mode="json")
        tree["teacher"] |= {"load": str(tmp_path / "model"), "model": None}
        tree["data"]["tokenizer"] = {"kind": "teacher"}
        further = replace(job, config=RunConfig.model_validate(tree))
        losses[name] = [line["train/loss"] for line in run(further, place).values()]
        found = AutoModelForCausalLM.from_pretrained(tmp_path / name / "teacher").eval()
        same = torch.equal(found(IDS).logits, loaded(IDS).logits)
        assert same == (name == "still")
        assert found.get_input_embeddings().weight.shape[0] == size
        assert found.lm_head.weight is found.model.embed_tokens.weight
    assert losses["still"][0] == losses["learns"][0]
    assert losses["learns"][-1] < losses["still"][-1]
