"""Students distilled from top-k sets of others, by one YAML and without their teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from kdscale.data.tokenizer import TOKENIZER_FILE, train_tokenizer
from tests.runs import MODULES, run_kdscale, tiny_config, write_config, write_corpus
from tests.unit.importing.sets import PUBLISHED, Source, write_distillkit, write_parquet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200), pytest.mark.usefixtures("shared_ray")]
VOCAB, LENGTH, K = 512, 64, 20


def make_source(folder: Path, corpus: Path) -> Source:
    """Write a tokenizer; return what a teacher that knows the corpus's pairs of tokens says."""
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    info = train_tokenizer(texts, VOCAB, folder / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / TOKENIZER_FILE))
    documents = [
        np.array([info.start_id, *encoding.ids, info.end_id])
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]
    counts = np.full((info.vocab_size, info.vocab_size), 0.02)
    for tokens in documents:
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    table = np.log(counts / counts.sum(1, keepdims=True))
    parts = [
        tokens[start : start + 200]
        for tokens in documents
        for start in range(0, min(len(tokens), 20 * 200), 200)
    ]
    parts = [part for part in parts if len(part) > 1]
    return Source(parts, [table[part] for part in parts])


def write_columns(path: Path, source: Source) -> None:
    """Write the top K as plain columns."""
    rows = []
    for number, tokens in enumerate(source.tokens):
        ids, values = source.top(number, K)
        row = {"input_ids": tokens, "top_ids": ids, "top_logprobs": values}
        rows.append({name: column.tolist() for name, column in row.items()})
    write_parquet(path, rows)


def import_and_distil(folder: Path, corpus: Path, source: Path) -> Path:
    """Import a set, distil from it, and return the run's config; its cache is `folder`/cache."""
    arguments = ["--teacher", "somebody/teacher-7b", "--tokenizer", str(folder / "tokenizer")]
    arguments += ["--seq-len", str(LENGTH)]
    out = folder / "cache"
    code, log = run_kdscale("cache", "import", str(source), str(out), *arguments)
    assert code == 0, log
    code, log = run_kdscale("cache", "verify", str(out))
    assert code == 0, log
    config = tiny_config(corpus, str(folder / "run"))
    del config["teacher"]
    config["cache"] = {"reuse": str(out)}
    config["data"] |= {"tokenizer": {"kind": "teacher"}, "evaluate": {}}
    config["distill"]["curriculum"] = {"warmup_share": 0.25, "difficulty": "entropy"}
    config["distill"]["training"] |= {"steps": 60, "micro_batch_size": 4, "checkpoint_every": 100}
    path = write_config(folder / "run.yaml", config)
    code, log = run_kdscale("run", str(path))
    assert code == 0, log
    assert "note: The run has no teacher" in log
    return path


def check_results(folder: Path) -> None:
    results = json.loads((folder / "run" / "results.json").read_text())
    assert list(results["models"]) == ["student", "baseline"]
    assert results["gap_recovered"] == {}
    student, baseline = (
        results["models"][name]["domains"]["validation"]["loss"] for name in ("student", "baseline")
    )
    # The teacher of pairs has seen the validation text too: its targets are worth more than labels.
    assert student < baseline < np.log(VOCAB)


def test_from_columns_to_an_evaluated_student(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", MODULES[:40])
    source = tmp_path / "set.parquet"
    write_columns(source, make_source(tmp_path, corpus))
    path = import_and_distil(tmp_path, corpus, source)
    check_results(tmp_path)
    summary = (tmp_path / "run" / "report" / "summary.md").read_text()
    assert "Its teacher was not at hand" in summary
    code, log = run_kdscale("run", str(path))
    assert code == 0, log
    assert log.count("complete, skipped") == 6
    _check_refusals(path, tmp_path / "cache")


@pytest.mark.slow
def test_from_a_set_of_distillkit_to_an_evaluated_student(tmp_path: Path) -> None:
    """With the settings of its published sets."""
    corpus = write_corpus(tmp_path / "corpus", MODULES[:25])
    made = make_source(tmp_path, corpus)
    write_distillkit(tmp_path / "set", made, PUBLISHED | {"d": VOCAB}, rows_per_file=100)
    import_and_distil(tmp_path, corpus, tmp_path / "set")
    check_results(tmp_path)


def _check_refusals(path: Path, out: Path) -> None:
    """Refuse what does not agree with the cache, before a worker starts."""
    changes = {
        "data.seq_len=32": "seq_len: the cache has 64, this run 32",
        "cache.temperature=2": "temperature: the cache has 1.0, this run 2.0",
        f"cache.reuse={out}-missing": "holds no cache",
        "data.tokenizer.kind=train": "set data.tokenizer.kind to 'teacher'",
        "cache.reuse=null": "there is no teacher: give teacher.load or teacher.model",
        "distill.targets=online": "distill.targets: online needs a teacher",
    }
    for change, expected in changes.items():
        more = ["--set", f"output={path.parent / 'other'}"]
        code, log = run_kdscale("run", str(path), "--set", change, *more)
        assert code == 2, change
        assert expected in log
        assert "Traceback" not in log
    assert not (path.parent / "other" / "prepared").exists()
