"""Runs that `plan.py` predicts and measures: models, codecs, worker counts and parallelism."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Tree = dict[str, Any]

_MEDIUM = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
_LARGE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}


def _tree(corpus: Path, output: Path, codec: Tree, workers: int) -> Tree:
    """Return a run of a 3 M teacher and a 0.4 M student."""
    group = {"count": workers}
    return {
        "name": output.name,
        "output": str(output),
        "data": {
            "train": {"kind": "text", "path": str(corpus)},
            "tokenizer": {"kind": "train", "vocab_size": 2048},
            "seq_len": 128,
            "evaluation_sequences": 32,
        },
        "teacher": {
            "model": {"architecture": "llama", "options": _MEDIUM | _HEADS},
            "training": {
                "steps": 60,
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "optimiser": {"learning_rate": 1e-3},
                "zero": {"stage": 2},
                "validation_sequences": 16,
            },
        },
        "cache": {
            "codec": codec,
            "sequences": 1024,
            "sequences_per_shard": 128,
            "sequences_per_chunk": 32,
            "capture": {"micro_batch_size": 16, "workers": group},
        },
        "distill": {
            "cache_folder": str(output.parent / "blocks"),
            "student": {
                "model": {
                    "architecture": "llama",
                    "options": {"hidden_size": 96, "intermediate_size": 256, **_HEADS}
                    | {"num_hidden_layers": 2},
                }
            },
            "training": {
                "steps": 60,
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "optimiser": {"learning_rate": 3e-3},
                "validation_sequences": 16,
            },
            "workers": group,
        },
        "tracking": {"wandb": "disabled"},
    }


def _varopt(corpus: Path, output: Path) -> tuple[Tree, str | None]:
    """Take the default codec and two workers."""
    return _tree(corpus, output, {"kind": "varopt", "k": 16, "head": 2}, 2), None


def _topk_single(corpus: Path, output: Path) -> tuple[Tree, str | None]:
    """Take another codec, and one worker with the whole teacher."""
    tree = _tree(corpus, output, {"kind": "topk", "k": 50}, 1)
    tree["cache"]["capture"]["teacher_sharding"] = "none"
    return tree, "varopt"


def _sample_single(corpus: Path, output: Path) -> tuple[Tree, str | None]:
    """Take Random-Sampling KD, one worker, longer steps."""
    tree = _tree(corpus, output, {"kind": "sample", "draws": 50}, 1)
    tree["cache"]["capture"]["teacher_sharding"] = "none"
    tree["distill"]["training"] |= {"global_batch_size": 16, "micro_batch_size": 16, "steps": 40}
    return tree, "varopt"


def _full_two(corpus: Path, output: Path) -> tuple[Tree, str | None]:
    """Take the whole distribution, two workers."""
    tree = _tree(corpus, output, {"kind": "full"}, 2)
    tree["cache"] |= {"sequences": 256, "sequences_per_shard": 32, "sequences_per_chunk": 8}
    return tree, "varopt"


def _zero_student(corpus: Path, output: Path) -> tuple[Tree, str | None]:
    """Train a student of 3 M under ZeRO-2 with activation checkpointing, two workers."""
    tree = _tree(corpus, output, {"kind": "varopt", "k": 32, "head": 2}, 2)
    tree["distill"]["student"]["model"]["options"] = _MEDIUM | _HEADS
    tree["distill"]["training"] |= {"zero": {"stage": 2}, "activation_checkpointing": True}
    return tree, "varopt"


def _large(corpus: Path, output: Path) -> tuple[Tree, str | None]:
    """Take a teacher of 20 M and a student of 3 M, one worker, few steps."""
    tree = _tree(corpus, output, {"kind": "varopt", "k": 12, "head": 4}, 1)
    tree["teacher"]["model"]["options"] = _LARGE | _HEADS
    tree["teacher"]["training"] |= {"steps": 16, "zero": {"stage": 0}}
    tree["teacher"]["workers"] = {"count": 1}
    tree["cache"] |= {"sequences": 256, "sequences_per_shard": 64}
    tree["cache"]["capture"]["teacher_sharding"] = "none"
    tree["distill"]["student"]["model"]["options"] = _MEDIUM | _HEADS
    return tree, None


CONFIGURATIONS: dict[str, Callable[[Path, Path], tuple[Tree, str | None]]] = {
    "varopt": _varopt,
    "topk-1-worker": _topk_single,
    "sample-1-worker": _sample_single,
    "full": _full_two,
    "zero-2-student": _zero_student,
    "large-teacher": _large,
}
"""By name: (config, the configuration whose prepared data and teacher it takes, if any)."""
