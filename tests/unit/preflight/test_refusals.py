"""Configs that a later stage would refuse, refused before anything starts.

By `run`, `plan` and `submit`, in the same words.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.cli import main
from kdscale.config.lora import LoraConfig
from kdscale.models.load import load_model
from kdscale.models.lora import Base, add_adapters
from kdscale.models.tasks import TaskSpec
from tests.unit.preflight.runs import (
    BERT,
    LLAMA,
    SMALL,
    WORDS,
    run_config,
    write_cache,
    write_documents,
    write_teacher,
)

Changes = dict[str, Any]
COMMANDS = (("run", "--dry-run"), ("plan",), ("submit", "--dry-run"))

LIVE = {"targets": "online"}
MODEL = "distill__student__model"
CLASSIFIER: Changes = {
    "task": "sequence-classification",
    "data__labels": {"classes": ["a", "b"]},
    "cache__codec": {"kind": "full"},
    MODEL: {"architecture": "bert", "options": {**BERT, "num_hidden_layers": 1}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, teachers and caches that the cases name."""
    folder = tmp_path_factory.mktemp("preflight")
    write_documents(folder / "text")
    write_teacher(folder / "teacher")
    write_teacher(folder / "other", words=tuple(word[::-1] for word in WORDS))
    write_teacher(
        folder / "gpt2",
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "max_position_embeddings": 40},
        seq_len=32,
    )
    write_teacher(folder / "bert", "bert", BERT, TaskSpec("masked-lm"))
    write_teacher(
        folder / "classifier", "bert", BERT, TaskSpec("sequence-classification", ("a", "b", "c"))
    )
    shutil.copytree(folder / "teacher", folder / "no-tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "no-tokenizer" / name).unlink()
    write_teacher(folder / "small", options=SMALL)
    for name in ("pointer", "cut", "unfit", "beyond"):
        shutil.copytree(folder / "teacher", folder / name)
    weights = (folder / "teacher" / "model.safetensors").read_bytes()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1234\n"
    (folder / "pointer" / "model.safetensors").write_text(pointer)
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    shutil.copytree(folder / "teacher", folder / "lowercase")
    tokenizer = folder / "lowercase" / "tokenizer.json"
    lowercase = {"normalizer": {"type": "Lowercase"}}
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | lowercase))
    set_config(folder / "unfit", intermediate_size=40)
    set_config(folder / "beyond", vocab_size=290)
    small = run_config(folder)
    write_cache(folder / "cache", small)
    write_cache(folder / "cache-short", small, seq_len=32)
    write_cache(folder / "cache-old", small, origin=False, tokenizer="cd" * 32)
    write_cache(folder / "cache-other", small, tokenizer_of=folder / "other")
    write_cache(folder / "cache-teacher", small, teacher="ab" * 8)
    write_cache(folder / "cache-warm", small, temperature=2.0)
    write_adapter(folder / "teacher", folder / "adapter")
    (folder / "bad.tsv").write_text("no tab here\n")
    (folder / "one").mkdir()
    (folder / "one" / "a.txt").write_text("word " * 200)
    (folder / "broken").mkdir()
    (folder / "broken" / "a.parquet").write_bytes(b"not a parquet file at all")
    return folder


def write_adapter(base: Path, folder: Path) -> None:
    """Write a folder of adapters beside the model in `base`, with its tokenizer."""
    model = load_model(base)
    adapters = add_adapters(model, LoraConfig(r=2), seed=0)
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    adapters.save(folder, model, values, Base(str(base)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)


def set_config(folder: Path, **fields: Any) -> None:
    """Change fields of a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def student(options: Changes, architecture: str = "llama") -> Changes:
    return {MODEL: {"architecture": architecture, "options": {**SMALL, **options}}}


def layers(choice: Any, **more: Any) -> Changes:
    return {"distill__student": {"teacher_layers": choice, **more}}


def load(folder: str, **more: Any) -> Changes:
    return {"distill__student": {"load": folder, **more}}


def own_tokenizer(place: str) -> Changes:
    model = {"architecture": "llama", "options": SMALL}
    return {
        "distill__tokenizer": "student",
        "distill__student": {"model": model, "tokenizer": place},
    }


# What is changed in a good config, where {} is the folder of `place`; and words of the answer.
CASES: dict[str, tuple[Changes, str]] = {
    # The student
    "architecture": (student({}, "lama"), "no architecture 'lama'"),
    "option": (student({"hidden_sise": 3}), "has no option 'hidden_sise'"),
    "option-type": (student({"hidden_size": "wide"}), "expected int, got str"),
    "heads-of-width": (student({"num_attention_heads": 5}), "not a multiple of the number of"),
    "heads-of-keys": (student({"num_key_value_heads": 3}), "fails in its first forward"),
    "no-heads": (student({"num_attention_heads": 0}), "cannot build the student: ZeroDivision"),
    "activation": (student({"hidden_act": "lamu"}), "cannot build the student: KeyError: 'lamu'"),
    "vocabulary": (student({"vocab_size": 100}), "options.vocab_size is 100, and the tokenizer"),
    "layers-list": (layers([0, 9]), "teacher_layers [9] are not among the teacher's layers 0 to 3"),
    "layers-count": (
        layers({"kind": "even", "count": 7}),
        "asks for 7 layers of a teacher with 4",
    ),
    "width": (layers([0, 2], width={"hidden_size": 64}), "hidden_size 64 is more than"),
    "width-heads": (
        layers([0, 2], width={"num_attention_heads": 3, "num_key_value_heads": 1}),
        "3 query heads cannot share 1",
    ),
    "width-family": (
        {
            **layers([0, 1], width={"hidden_size": 16}),
            "teacher__load": "{}/gpt2",
            "data__seq_len": 32,
        },
        "architecture 'gpt2' cannot be made narrower",
    ),
    "copied-embeddings": (
        {"distill__student__copy_embeddings": True},
        "student's embeddings have 16 columns, the teacher's 32",
    ),
    "student-task": (
        {
            **CLASSIFIER,
            "teacher__load": "{}/classifier",
            "data__labels": {"classes": ["a", "b", "c"]},
            MODEL: {"architecture": "mamba", "options": {"hidden_size": 16}},
        },
        "no sequence classifier of the architecture 'mamba'",
    ),
    "load-missing": (load("./nowhere"), "/nowhere' does not exist"),
    "load-tokenizer": (load("{}/other"), "has another tokenizer than the run"),
    "load-embeddings": (load("{}/beyond"), "The student has 290 embeddings, but the run's"),
    "load-cut": (load("{}/cut"), "is damaged: it has"),
    "load-pointer": (load("{}/pointer"), "is a git-lfs pointer"),
    "load-unfit": (load("{}/unfit"), "do not fit its config"),
    "load-layers": (
        load("{}/small", layers=[0, 2]),
        "layers [2] are not among the loaded model's layers 0 to 1",
    ),
    "load-width": (load("{}/small", width={"hidden_size": 64}), "more than the loaded model's 16"),
    "own-tokenizer": (own_tokenizer("{}/text"), "can load no tokenizer of"),
    "own-tokenizer-lowercase": (
        own_tokenizer("{}/lowercase"),
        "The student's tokenizer: The ids of this tokenizer do not spell their text exactly",
    ),
    "own-tokenizer-of-lowercase": (
        {**own_tokenizer("{}/teacher"), "teacher__load": "{}/lowercase"},
        "The teacher's tokenizer: The ids of this tokenizer do not spell their text exactly",
    ),
    "own-tokenizer-topk": (
        {**own_tokenizer("{}/other"), "cache__codec": {"kind": "topk", "k": 8}},
        "the ghost bucket of 'topk' does not say",
    ),
    "own-tokenizer-embeddings": (
        {**load("{}/beyond"), "distill__tokenizer": "student"},
        "has 290 embeddings, and its own tokenizer",
    ),
    "load-before": (
        {**load("{}/small"), "evaluate__models": {"before": "{}/small"}},
        "evaluate.models has a `before`",
    ),
    "packs": (
        {MODEL: {"architecture": "mamba", "options": {"hidden_size": 16, "num_hidden_layers": 1}}},
        "packed documents",
    ),
    # Its training
    "no-dropout": (
        {
            "distill__training__dropout": 0.1,
            "data__pack": False,
            MODEL: {
                "architecture": "mamba",
                "options": {"hidden_size": 16, "num_hidden_layers": 1},
            },
        },
        "'mamba' has no dropout to set to 0.1",
    ),
    "betas": ({"distill__training__optimiser": {"betas": [1.5, 2]}}, "optimiser.betas"),
    "rate": ({"distill__training__optimiser": {"learning_rate": float("inf")}}, "learning_rate"),
    "clip": ({"distill__training__optimiser": {"clip": float("inf")}}, "finite number"),
    # What it learns from
    "many-ids": ({"cache__codec": {"kind": "topk", "k": 400}}, "cache.codec.k is 400, but the"),
    "loss": (
        {"distill__loss": {"divergence": {"kind": "reverse_kl"}}},
        "'reverse_kl' is not defined on the targets of 'varopt'",
    ),
    "hidden-layers": (
        {"distill__targets": "online", "distill__online": {"hidden": {"layers": [[0, 1], [1, 8]]}}},
        "distill.online.hidden.layers has [1, 8], but the teacher has layers 0 to 3",
    ),
    "attention-layers": (
        {"distill__targets": "online", "distill__online": {"attention": {"layers": [[2, 3]]}}},
        "distill.online.attention.layers has [2, 3], but the student has layers 0 to 1",
    ),
    "no-kernel": (
        {
            MODEL: {"architecture": "bloom", "options": {"hidden_size": 32, "n_layer": 1}},
            "distill__student__attention": "flex_attention",
        },
        "(bloom) does not take attention 'flex_attention': transformers has no such kernel for it",
    ),
    "attention-dropout": (
        {
            "distill__targets": "online",
            "distill__online": {"attention": {}},
            MODEL: {"architecture": "gpt2", "options": {"n_embd": 16, "n_layer": 1, "n_head": 2}},
        },
        "dropout changes those of the student ('gpt2')",
    ),
    # Rows and tokenizer
    "no-corpus": ({"data__train__path": "{}/teacher/*.txt"}, "holds no jsonl files"),
    "field": ({"data__train__text_field": "body"}, "has no field 'body', only label, text"),
    "evaluation-name": (
        {"data__evaluate": {"b c": {"kind": "jsonl", "path": "{}/text"}}},
        "An evaluation set cannot be called 'b c'",
    ),
    "evaluation-field": (
        {"data__evaluate": {"b": {"kind": "jsonl", "path": "{}/text", "text_field": "body"}}},
        "has no field 'body'",
    ),
    "not-parquet": (
        {"data__train": {"kind": "parquet", "path": "{}/broken"}},
        "is damaged or not a parquet file",
    ),
    "one-document": (
        {"data__train": {"kind": "text", "path": "{}/one"}},
        "1 document is all that data.train has",
    ),
    "language": (
        {"data__cleaning": [{"kind": "language", "keep": ["klingon"]}]},
        "languages ['klingon'] are not known",
    ),
    "synonyms": (
        {"data__augment": {"steps": [{"kind": "replace", "table": "{}/bad.tsv"}]}},
        "is no word with its synonyms",
    ),
    "class": (
        {
            **CLASSIFIER,
            "teacher__load": "{}/classifier",
            "data__labels": {"classes": ["a", "c", "d"]},
        },
        "label 'b', which is no class",
    ),
    "no-tokenizer": ({"teacher__load": "{}/no-tokenizer"}, "tokenizer of"),
    "no-mask": (
        {"task": "masked-lm", MODEL: {"architecture": "bert", "options": dict(BERT)}},
        "has no mask token",
    ),
    # The teacher
    "teacher-task": (
        {"teacher__load": "{}/bert"},
        "is a masked language model, and the run's task is 'causal-lm'",
    ),
    "teacher-classes": (
        {**CLASSIFIER, "teacher__load": "{}/classifier"},
        "tells ['a', 'b', 'c'] apart, and the data has the classes ['a', 'b']",
    ),
    "teacher-architecture": (
        {
            "teacher": {
                "model": {"architecture": "lama"},
                "training": {"steps": 1, "global_batch_size": 2},
            },
            "data__tokenizer": {"kind": "train", "vocab_size": 300},
        },
        "no architecture 'lama'",
    ),
    "teacher-options": (
        {
            "teacher": {
                "model": {"architecture": "llama", "options": {**LLAMA, "num_key_value_heads": 3}},
                "training": {"steps": 1, "global_batch_size": 2},
            },
            "data__tokenizer": {"kind": "train", "vocab_size": 300},
        },
        "The teacher, a 'llama', fails in its first forward",
    ),
    "pointer": ({"teacher__load": "{}/pointer"}, "model.safetensors is a git-lfs pointer of"),
    "cut": ({"teacher__load": "{}/cut"}, "model.safetensors is damaged: it has"),
    "unfit": (
        {"teacher__load": "{}/unfit"},
        "do not fit its config: 'model.layers.0.mlp.down_proj.weight' is [32, 48]",
    ),
    "beyond": ({"teacher__load": "{}/beyond"}, "The teacher has 290 embeddings"),
    "positions": (
        {"teacher__load": "{}/gpt2"},
        "The teacher, a 'gpt2' of 40 positions, cannot take 64 tokens",
    ),
    # Other caches
    "no-cache": ({"cache__reuse": "{}/text"}, "/text holds no cache"),
    "cache-length": (
        {"cache__reuse": "{}/cache-short"},
        "seq_len: the cache has 32, this run 64",
    ),
    "cache-temperature": (
        {"cache__append_to": "{}/cache-warm"},
        "temperature: the cache has 2.0, this run 1.0",
    ),
    "cache-codec": (
        {"cache__append_to": "{}/cache", "cache__codec": {"kind": "varopt", "k": 12}},
        "codec.k: the cache has 8, this run 12",
    ),
    "cache-seed": (
        {"cache__append_to": "{}/cache", "seed": 5},
        "seed: the cache has 0, this run 5",
    ),
    "cache-tokenizer": (
        {"cache__reuse": "{}/cache-other"},
        "here, the first of",
    ),
    "cache-old-tokenizer": (
        {"cache__reuse": "{}/cache-old"},
        "tokenizer: another one; the cache was made by an older version",
    ),
    "cache-teacher": ({"cache__reuse": "{}/cache-teacher"}, "teacher: the cache has that of"),
    "cache-loss": (
        {"cache__reuse": "{}/cache", "distill__loss": {"divergence": {"kind": "logit_mse"}}},
        "'logit_mse' is not defined on the targets of 'varopt'",
    ),
    "cache-weight": (
        {"cache__reuse": [{"url": "{}/cache"}, {"url": "{}/cache", "weight": 0.001}]},
        "A weight of 0.001 leaves no row of a cache of 8",
    ),
    # LoRA
    "lora-random": (
        {"distill__student__lora": {}},
        "those of `model` start at random: start from `teacher_layers` or `load`",
    ),
    "lora-module": (
        layers([0, 1], lora={"target_modules": ["q_proj", "v_porj"]}),
        "'v_porj' matches nothing in a 'llama'. There are q_proj, k_proj, v_proj, o_proj,",
    ),
    "lora-head": (
        layers([0, 1], lora={"target_modules": ["lm_head"]}),
        "'lm_head' matches 'lm_head', which is none",
    ),
    "lora-rank": (
        layers([0, 1], lora={"r": 0}),
        "distill.student.lora.r: Input should be greater than 0 (given: 0)",
    ),
    "lora-nf4": (
        layers([0, 1], lora={"quantise": "nf4"}),
        "distill.student.lora.quantise is nf4, which needs GPUs, and distill.workers.gpus is 0",
    ),
    "lora-nf4-zero": (
        {
            **layers([0, 1], lora={"quantise": "nf4"}),
            "distill__workers": {"gpus": 1},
            "distill__training__zero": {"stage": 2},
        },
        "distill.student.lora.quantise is nf4, and distill.training.zero.stage is 2",
    ),
    "lora-head-at-random": (
        {
            **CLASSIFIER,
            "teacher__training": {"steps": 1, "global_batch_size": 2},
            MODEL: None,
            "teacher__load": "{}/bert",
            "distill__student": {"load": "{}/bert", "lora": {}},
        },
        "and some of them start at random",
    ),
    "lora-as-teacher": ({"teacher__load": "{}/adapter"}, "holds adapters (LoRA) for another model"),
    "lora-as-student": (load("{}/adapter"), "holds adapters (LoRA) for another model"),
    # Evaluation
    "generated-positions": (
        {"teacher__load": "{}/gpt2", "data__seq_len": 32},
        "The teacher has 40 positions, and evaluate.speed lets it write 32 tokens after 16",
    ),
    "model-task": (
        {"evaluate__models": {"old": "{}/bert"}},
        "model 'old' of evaluate.models is a masked language model",
    ),
    "model-tokenizer": (
        {"evaluate__models": {"old": "{}/other"}},
        "model 'old' of evaluate.models has another tokenizer than the run",
    ),
}


# The rest are the same function's: `run` alone is asked for them, as each question takes a second.
THROUGH_ALL = {
    *("architecture", "option", "heads-of-keys", "no-heads", "vocabulary", "layers-list"),
    *("layers-count", "width", "width-family", "copied-embeddings", "packs", "no-dropout", "betas"),
    *("many-ids", "loss", "hidden-layers", "attention-dropout", "field", "not-parquet"),
    *("one-document", "class", "no-mask", "teacher-task", "teacher-options", "pointer", "unfit"),
    *("positions", "cache-length", "cache-tokenizer", "cache-loss", "generated-positions"),
    *("model-tokenizer", "evaluation-name"),
}


def filled(value: Any, folder: Path) -> Any:
    """`value` with `folder` for {}."""
    if isinstance(value, str):
        return value.replace("{}", str(folder))
    if isinstance(value, dict):
        return {key: filled(each, folder) for key, each in value.items()}
    return [filled(each, folder) for each in value] if isinstance(value, list) else value


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, error and fix) of the program, run in this process."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return int(caught.value.code or 0), err.partition("error: ")[2]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", refuse)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("no_ray")
def test_all_three_refuse_it_by_the_same_words(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = CASES[name]
    tree = run_config(place, output=str(tmp_path / "output"), **filled(changes, place))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    commands = COMMANDS if name in THROUGH_ALL else COMMANDS[:1]
    answers = {command: answer(capsys, command, str(path), *more) for command, *more in commands}
    code, text = answers["run"]
    assert code == 2
    assert words in " ".join(text.split())
    assert "fix: " in text
    assert set(answers.values()) == {answers["run"]}
    assert not (tmp_path / "output").exists()


@pytest.mark.usefixtures("no_ray")
def test_adapters_are_not_written_over_their_base(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "teacher", tmp_path / "output" / "student")
    output = str(tmp_path / "output")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_config(place, output=output, **load(f"{output}/student"))))
    main_answer = answer(capsys, "run", str(path), "--dry-run")
    assert "is where this run writes its student" not in main_answer[1]
    tree = run_config(place, output=output, **load(f"{output}/student", lora={}))
    path.write_text(yaml.safe_dump(tree))
    code, text = answer(capsys, "run", str(path), "--dry-run")
    assert code == 2
    assert "is where this run writes its student, and adapters need the model" in text
