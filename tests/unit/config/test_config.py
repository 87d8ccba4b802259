"""Configs: every shipped file parses, mistakes are named, overrides and fingerprints hold."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from kdscale.config import RunConfig, dump_config, fingerprint, load_config, parse_config
from kdscale.config.renamed import RENAMED
from kdscale.config.starter import starter_yaml
from kdscale.errors import KdscaleError

CONFIGS = sorted((Path(__file__).parents[3] / "jobs" / "configs").glob("*.yaml"))
QUICKSTART = next(path for path in CONFIGS if path.name == "quickstart.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid_and_survives_its_dump(path: Path) -> None:
    config = load_config(path)
    assert parse_config(dump_config(config)) == config


def test_the_starter_config_is_valid() -> None:
    assert parse_config(starter_yaml()).name


def test_every_field_is_documented_once_under_the_field() -> None:
    undocumented = []

    def walk(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            inner = (field.annotation, *getattr(field.annotation, "__args__", ()))
            models = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
            for other in models:
                walk(other)
            # A section is documented by its own class.
            if not field.description and not models and name != "kind" and name != "codec":
                undocumented.append(f"{model.__name__}.{name}")

    walk(RunConfig)
    assert undocumented == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distil.steps=3", r"distil: unknown key"),
        ("data.foo=1", r"data\.foo: unknown key"),
        ("cache.codec.k=1", r"cache\.codec\.varopt\.k: .* greater than or equal to 2"),
        ("cache.codec={kind: topq}", r"cache\.codec: .*'topq'"),
        ("data.seq_len=abc", r"data\.seq_len: .*integer.*'abc'"),
        ("data.overlap=128", "overlap 128 must be below seq_len 128"),
        ("data.evaluation_context=128", "evaluation_context 128 must be below seq_len 128"),
        (
            "data.evaluation_context=8; data.long_documents=truncate",
            "evaluation_context is of documents that are split, and long_documents is 'truncate'",
        ),
        ("data.evaluation_context=8; task=masked-lm", "is for the task causal-lm"),
        ("teacher.load=some/model", "give either `load` or `model`"),
        ("distill.student.teacher_layers=[0]", "give either `model` or `teacher_layers`"),
        ("cache.sequences=4", "global_batch_size 8 is more than cache.sequences 4"),
        (
            "distill.workers={count: 2, gpus: 0.5}",
            "2 workers of 0.5 GPUs would share a GPU, which NCCL refuses: give gpus 1, or count 1",
        ),
        ("cache.capture.teacher_sharding=zero2", "Input should be 'none' or 'zero3'"),
        (
            "cache.capture={teacher_sharding: none, teacher_offload: cpu}",
            "teacher_offload needs teacher_sharding zero3",
        ),
        (
            "cache.capture={teacher_sharding: none, teacher_group: node}",
            "teacher_group node needs teacher_sharding zero3",
        ),
        (
            "cache.capture={teacher_group: 3, workers: {count: 8}}",
            "teacher_group 3 does not divide 8 workers: give a divisor of workers.count",
        ),
        (
            "distill.targets=online; distill.workers.count=4; "
            "distill.online={teacher_sharding: zero3, teacher_group: 3}",
            "teacher_group 3 does not divide 4 workers",
        ),
        (
            "distill.training.compile=true; distill.training.zero.stage=3",
            "compile needs zero.stage 0, 1 or 2",
        ),
        ("cache.capture.teacher_group=1", "greater than or equal to 2"),
        ("distill.loss.kd_weight={kind: linear, start: 1}", "`end` belongs to every kind"),
        ("distill.loss.kd_weight={start: 1.5}", r"kd_weight 1.5 is outside 0\.\.1"),
        ("distill.loss.kd_weight=1.5", r"kd_weight 1.5 is outside 0\.\.1"),
        ("distill.loss.kd_weight=true", r"distill\.loss\.kd_weight: "),
        ("distill.loss.kd_weight={kind: stages, values: [0.5, 2]}", r"2\.0 is outside 0\.\.1"),
        ("distill.loss.divergence={kind: reverse_kl}", "not defined on the targets of 'varopt'"),
        ("distill.online.teacher_sharding=zero3", "set targets to `online`"),
        (
            "distill.curriculum.length={multiple: 2, positions: {start: 2}}; data.overlap=3",
            "goes down to 2 positions, of which data.overlap takes 3",
        ),
        ("name=a/b", "name: String should match"),
        ("data.train={kind: text}", r"data\.train: source 'text' needs `path`"),
        ("data.train={kind: texts}", r"data\.train\.kind: "),
        ("data.train=[{kind: text}]", r"data\.train\.mixture\.0: source 'text' needs `path`"),
        ("data.train=[{kind: python-docs, weight: 0}]", r"mixture\.0\.weight: .*greater than 0"),
        ("data.train=[]", r"data\.train\.mixture: .* at least 1 item"),
        ("data.chat={}", "train: a source 'python-stdlib' holds no conversations"),
        (
            "data={train: {kind: csv, path: a}, chat: {}}; task=masked-lm",
            "data.chat and data.long_documents 'drop' are for the task causal-lm",
        ),
        (
            "data={train: {kind: csv, path: a}, chat: {}}; "
            "distill.curriculum.length={multiple: 8, positions: {start: 8}}",
            "with data.chat there may be no answer in these",
        ),
        ("data.evaluate={validation: {kind: python-docs}}", "give the other set another name"),
        ("data.tokenizer.kind=teacher", "needs teacher.load"),
        ("nonsense", "does not have the form a.b=value"),
        ("seed.x=1", "goes through 'seed', a value"),
    ],
)
def test_a_mistake_is_named_with_the_field(override: str, message: str) -> None:
    with pytest.raises(KdscaleError, match=message):
        load_config(QUICKSTART, override.split("; "))


# Keys of the quickstart's config, and what else stands around an old one.
_AROUND = {
    "teacher.training.early_stopping.least_gain": "teacher.training.early_stopping.patience=2",
    "distill.training.early_stopping.least_gain": "distill.training.early_stopping.patience=2",
}


@pytest.mark.parametrize(("old", "new"), RENAMED.items(), ids=RENAMED)
def test_an_old_key_is_refused_with_its_new_name(old: str, new: str, tmp_path: Path) -> None:
    overrides = [_AROUND.get(old, "seed=0"), f"{old}=1"]
    problem = rf"^  {re.escape(old)}: renamed to {re.escape(new)}$"
    with pytest.raises(KdscaleError, match=re.compile(problem, re.M)):
        load_config(QUICKSTART, overrides)
    tree = yaml.safe_load(QUICKSTART.read_text())
    section, *names = tree, *old.split(".")
    for name in names[:-1]:
        section = section.setdefault(name, {})
    section[names[-1]] = 1
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(KdscaleError, match=re.compile(problem, re.M)):
        load_config(path)


def test_a_new_name_is_one_of_a_field() -> None:
    for new in RENAMED.values():
        model: type[BaseModel] = RunConfig
        for name in new.split()[0].split("."):
            field = model.model_fields[name]
            inner = (field.annotation, *getattr(field.annotation, "__args__", ()))
            models = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
            model = models[0] if models else BaseModel


def test_an_old_value_is_refused_with_its_new_name() -> None:
    with pytest.raises(KdscaleError, match=r"distill\.targets: 'live' is now 'online'"):
        load_config(QUICKSTART, ["distill.targets=live"])


def test_overrides_are_yaml_and_open_sections() -> None:
    config = load_config(
        QUICKSTART,
        ["seed=7", "distill.loss.kd_weight={kind: inverse, start: 1, end: 0}", "output=s3://b/p"],
    )
    assert (config.seed, config.output) == (7, "s3://b/p")
    assert config.distill.loss.kd_weight.kind == "inverse"


def test_a_plain_number_is_a_constant_schedule() -> None:
    number, spelt = (
        load_config(QUICKSTART, [f"distill.loss.kd_weight={value}"])
        for value in ("0.9", "{kind: constant, start: 0.9}")
    )
    assert number == spelt
    assert number.distill.loss.kd_weight.start == 0.9


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match=r"nowhere\.yaml' cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(KdscaleError, match="not valid YAML"):
        load_config(broken)
    broken.write_text("- a\n")
    with pytest.raises(KdscaleError, match="holds no mapping"):
        load_config(broken)


def test_configs_are_frozen() -> None:
    config = load_config(QUICKSTART)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]  # what is tested


def test_a_fingerprint_depends_on_content_and_not_on_order() -> None:
    tree = yaml.safe_load(QUICKSTART.read_text())
    turned = dict(reversed(tree.items()))
    one, same = (RunConfig.model_validate(t).model_dump(mode="json") for t in (tree, turned))
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint({**one, "seed": 1})
    assert len(fingerprint(one)) == 16


@pytest.mark.parametrize(
    ("field", "override"),
    [
        ("output", "output=ftp://me:hunter2@host/run"),
        ("data.train.path", "data.train={kind: text, path: 'https://host/a?sv=1&sig=hunter2'}"),
        ("cache.reuse.0.url", "cache.reuse=[{url: 's3://key:hunter2@bucket/cache'}]"),
        ("teacher.load", "teacher={load: 'https://host/model?X-Amz-Signature=hunter2'}"),
    ],
)
def test_a_url_with_a_secret_is_refused_without_showing_it(field: str, override: str) -> None:
    with pytest.raises(KdscaleError, match=f"URL in {field} has a password") as caught:
        load_config(QUICKSTART, [override])
    assert "hunter2" not in str(caught.value)


def test_a_url_with_a_user_or_a_port_is_no_secret() -> None:
    for url in ("abfs://container@account.dfs.core.windows.net/run", "hdfs://host:8020/run"):
        assert load_config(QUICKSTART, [f"output={url}"]).output == url


def test_the_home_folder_is_meant_alike_in_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/she")
    places = {
        "output": "~/run",
        "base": "~/base",
        "teacher.load": "~/model",
        "data.tokenizer.kind": "teacher",
        "data.train": "[{kind: text, path: ~/a/*.txt}, {kind: huggingface, path: ~/set}]",
        "data.evaluate": "{law: {kind: jsonl, path: ~/law}}",
        "data.augment": "{steps: [{kind: replace, table: ~/words.tsv}]}",
        "cache.reuse": "~/cache",
        "distill.cache_folder": "~/blocks",
        "evaluate.models.other": "~/other",
    }
    text = dump_config(load_config(QUICKSTART))
    tree = yaml.safe_load(text)
    tree["teacher"] = {}
    config = parse_config(yaml.safe_dump(tree), [f"{name}={v}" for name, v in places.items()])
    dumped = dump_config(config)
    assert "~" not in dumped
    wanted = [path for v in places.values() for path in re.findall(r"~/([^,}\]]+)", v)]
    assert len(wanted) == 10
    for path in wanted:
        assert f"/home/she/{path}" in dumped, path
    more = [
        "teacher.load=a/b",
        "data.tokenizer.kind=teacher",
        "cache.reuse=[{url: ~/one}, {url: 's3://two/~/x'}]",
        "data.train={kind: jsonl, path: a}",
        "data.evaluate={}",
        "data.chat={template: ~/chat.jinja}",
    ]
    config = parse_config(yaml.safe_dump(tree), more)
    assert isinstance(config.cache.reuse, tuple)
    assert [each.url for each in config.cache.reuse] == ["/home/she/one", "s3://two/~/x"]
    assert config.teacher.load == "a/b"
    assert config.data.chat is not None
    assert config.data.chat.template_file == "/home/she/chat.jinja"
