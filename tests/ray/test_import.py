"""A student distilled from a top-k set of plain columns, by one YAML and without its teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from kdscale.data.tokenizer import TOKENIZER_FILE, train_tokenizer
from tests.runs import MODULES, run_kdscale, tiny_config, write_config, write_corpus
from tests.unit.importing.sets import write_parquet

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200), pytest.mark.usefixtures("shared_ray")]
VOCAB, LENGTH, K = 512, 64, 20


def write_set(folder: Path, corpus: Path) -> Path:
    """Write a tokenizer, and the top K of a teacher that knows the corpus's pairs of tokens."""
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
    ids = np.argsort(-table, axis=1)[:, :K]
    values = np.take_along_axis(table, ids, 1)
    rows = []
    for tokens in documents:
        for start in range(0, min(len(tokens), 20 * 200), 200):
            part = tokens[start : start + 200]
            if len(part) > 1:
                rows.append(
                    {
                        "input_ids": part.tolist(),
                        "top_ids": ids[part].tolist(),
                        "top_logprobs": values[part].tolist(),
                    }
                )
    return write_parquet(folder / "set.parquet", rows)


def test_from_columns_to_an_evaluated_student(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", MODULES[:40])
    source, out = write_set(tmp_path, corpus), tmp_path / "cache"
    arguments = ["--teacher", "somebody/teacher-7b", "--tokenizer", str(tmp_path / "tokenizer")]
    code, log = run_kdscale(
        "cache", "import", str(source), str(out), *arguments, "--seq-len", str(LENGTH)
    )
    assert code == 0, log
    config = tiny_config(corpus, str(tmp_path / "run"))
    del config["teacher"]
    config["cache"] = {"reuse": str(out)}
    config["data"] |= {"tokenizer": {"kind": "teacher"}, "evaluate": {}}
    config["distill"]["curriculum"] = {"warmup_share": 0.25, "difficulty": "entropy"}
    config["distill"]["training"] |= {"steps": 60, "micro_batch_size": 4, "checkpoint_every": 100}
    path = write_config(tmp_path / "run.yaml", config)
    code, log = run_kdscale("run", str(path))
    assert code == 0, log
    assert "note: The run has no teacher" in log
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["models"]) == ["student", "baseline"]
    assert results["gap_recovered"] == {}
    student, baseline = (
        results["models"][name]["domains"]["validation"]["loss"] for name in ("student", "baseline")
    )
    # The teacher of pairs has seen the validation text too: its targets are worth more than labels.
    assert student < baseline < np.log(VOCAB)
    summary = (tmp_path / "run" / "report" / "summary.md").read_text()
    assert "Its teacher was not at hand" in summary
    code, log = run_kdscale("run", str(path))
    assert code == 0, log
    assert log.count("complete, skipped") == 6
    _check_refusals(path, out)


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
