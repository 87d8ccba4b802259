"""A whole run in this process, without a cluster: prepared data, a teacher, a cache, a student."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.config import RunConfig, dump_config
from kdscale.config.training import WorkersConfig
from kdscale.data.rows.manifest import FORMAT, VERSION, write_manifest
from kdscale.data.rows.pack import RowCounts, concatenate
from kdscale.data.rows.splits import SplitWriter, make_builder
from kdscale.data.tokenizer import TokenizerInfo, encode, train_tokenizer
from kdscale.models.hf_folder import publish
from kdscale.models.load import build_model, count_parameters, make_config
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.finished_run import CONFIG_KEY
from kdscale.run.record import RunRecord
from kdscale.run.stages import cache, distill, evaluate
from kdscale.run.stages.base import Stage, StageContext
from kdscale.store import upload_folder
from tests.ranks import run_ranks
from tests.runs import read_metrics, tiny_config

TEXTS = {
    "train": [
        "def area(width, height):\n    return width * height  # in square metres\n" * 2,
        "The quick brown fox jumps over the lazy dog, and then it sleeps for 13 days. " * 3,
        "for number in range(100):\n    print(number ** 2, 'naïve café')\n" * 3,
        "It was the best of times, it was the worst of times: the year was 1775. " * 3,
        "import numpy as np\nvalues = np.arange(12).reshape(3, 4)\n\n" * 3,
        "Привет, мир! 你好，世界。 The same in three scripts, and 2026-11-30. " * 3,
    ],
    "validation": [
        "def volume(width, height, depth):\n    return area(width, height) * depth\n",
        "The lazy dog sleeps for 7 days, and the quick fox jumps over it. Привет!",
        "In the year 2026 it was the best café of times.",
    ],
}
TEXTS["train"] += [
    text.replace("13", str(number)).replace("number", f"value_{number}") + f" ({number})"
    for number in range(2, 6)
    for text in TEXTS["train"]
]
SEQ_LEN, IDS = 48, 420


@dataclass
class InProcess:
    """Groups of workers that are this process alone, or some gloo ranks."""

    ranks: int = 1

    def run(self, job: Any, workers: WorkersConfig, progress: Any) -> None:
        if self.ranks == 1:
            job.run()
        else:
            run_ranks(job.run, self.ranks)


@dataclass(frozen=True)
class WholeRun:
    """A run with everything before its student."""

    run: RunArtifacts
    groups: InProcess = field(default_factory=InProcess)

    def make(self, stage: Stage) -> "WholeRun":
        record = RunRecord(self.run.output, self.run.config.name, self.run.fingerprint)
        context: Any = StageContext(self.run, record, self.groups, None)  # type: ignore[arg-type]
        with record.running(stage.name, stage.fingerprint(self.run)):
            stage.make(context)
        return self

    def distill(self) -> "WholeRun":
        return self.make(distill.STAGE)

    def evaluate(self) -> "WholeRun":
        return self.make(evaluate.STAGE)

    @property
    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run.output.get("results.json"))
        return found

    def lines(self, stage: str) -> list[dict[str, float]]:
        return read_metrics(self.run.output.get(f"metrics/{stage}.jsonl"))


def write_tokenizer(folder: Path, vocab_size: int, texts: Sequence[str]) -> TokenizerInfo:
    return train_tokenizer(texts, vocab_size, folder)


def make_run(folder: Path, **changes: Any) -> WholeRun:
    """Make a run's data, teacher and cache in `folder`/output; `changes` as of `tiny_config`."""
    config = RunConfig.model_validate(_config(folder, **changes))
    run = RunArtifacts(config)
    run.output.put(CONFIG_KEY, dump_config(config).encode())
    info = _prepare(run, folder / "tokenizer")
    assert config.teacher.model is not None
    model = build_model(
        make_config(config.teacher.model, info.vocab_size, info.special_ids, SEQ_LEN), seed=5
    )
    publish(
        run.output,
        "teacher",
        export=lambda to: model.save_pretrained(to),
        tokenizer=folder / "tokenizer",
        fingerprint=run.teacher_fingerprint,
        parameters=count_parameters(model),
    )
    store = cache.own_store(run)
    cache.plan_capture(run, store.put_if_absent).run()
    whole = WholeRun(run)
    record = RunRecord(run.output, config.name, run.fingerprint)
    for name, fingerprint in (
        ("prepare", run.prepare_fingerprint),
        ("teacher", run.teacher_fingerprint),
        ("cache", run.cache_fingerprint),
    ):
        with record.running(name, fingerprint):
            pass
    return whole


def another(folder: Path, whole: WholeRun, **changes: Any) -> WholeRun:
    """Return a run over the data, teacher and cache of `whole`, in an output of its own."""
    train: Any = whole.run.config.data.train
    same = {"base": whole.run.output.url, "data__train": train.model_dump()}
    made = _config(folder, **same, **changes)
    config = RunConfig.model_validate(made)
    run = RunArtifacts(config)
    run.output.put(CONFIG_KEY, dump_config(config).encode())
    return WholeRun(run)


def _config(folder: Path, **changes: Any) -> dict[str, Any]:
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(TEXTS["train"]):
        (corpus / f"{number}.txt").write_text(text)
    config = tiny_config(corpus, str(folder / "output"))
    config["data"] |= {"seq_len": SEQ_LEN, "evaluate": {}}
    config["data"]["tokenizer"]["vocab_size"] = IDS
    config["teacher"]["model"]["options"] |= {"hidden_size": 32, "initializer_range": 0.3}
    # ZeRO would need a group of processes.
    config["cache"]["capture"]["teacher_sharding"] = "none"
    config["cache"] |= {"sequences": None, "sequences_per_shard": 4, "sequences_per_chunk": 2}
    config["distill"]["training"] |= {
        "steps": 6,
        "global_batch_size": 4,
        "validation_sequences": 2,
        "validate_every": 3,
        "checkpoint_every": 2,
    }
    config["distill"]["cache_folder"] = str(folder / "chunks")
    config["evaluate"] = {"speed": None, "samples": None, "teacher_sharding": "none"}
    config["tracking"] = {"wandb": "disabled"}
    for key, value in changes.items():
        section = config
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return config


def _prepare(run: RunArtifacts, folder: Path) -> TokenizerInfo:
    """Write sequences as the prepare stage does."""
    config, store = run.config.data, run.prepared_store
    info = write_tokenizer(folder, config.tokenizer.vocab_size, TEXTS["train"])
    upload_folder(folder, store, "tokenizer")
    tokenizer_json = (folder / "tokenizer.json").read_text()
    writer = SplitWriter("causal-lm", config, store, "", info, lambda *_: None)
    splits = {}
    for name, texts in TEXTS.items():
        overlap = config.overlap if name == "train" else config.evaluation_overlap
        builder = make_builder("causal-lm", config, info, overlap)
        documents: Any = [each for found in encode(tokenizer_json, info, texts) for each in found]
        rows = concatenate(list(builder.build(documents)), config.seq_len)
        splits[name] = writer._store_rows(name, [rows], RowCounts(rows=len(rows)))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "task": "causal-lm",
        "seq_len": config.seq_len,
        "tokenizer": info.as_dict(),
        "classes": [],
        "splits": splits,
    }
    write_manifest(store, manifest)
    return info
