"""A run small enough for a test, but with every stage and two real workers in each."""

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdscale.cli import main
from kdscale.config import RunConfig
from tests.environment import environment


@dataclass(frozen=True)
class FinishedRun:
    """A run that went through, and what it printed."""

    output: Path
    config: Path
    corpus: Path
    log: str


SMALL_MODEL = {"num_attention_heads": 2, "num_key_value_heads": 2}

# Modules of plain text size that every CPython has; enough to learn something from in seconds.
_NAMES = (
    "abc argparse ast base64 bdb bisect calendar cmd code codecs codeop colorsys configparser "
    "contextlib copy csv dataclasses datetime decimal difflib dis doctest enum filecmp fileinput "
    "fnmatch fractions ftplib functools getopt getpass gettext glob gzip hashlib heapq hmac "
    "imaplib inspect io ipaddress keyword linecache locale lzma mailbox mimetypes netrc ntpath "
    "numbers operator optparse os pathlib pdb pickle pickletools plistlib poplib posixpath pprint "
    "profile pstats queue quopri random reprlib runpy sched selectors shelve shlex shutil signal "
    "smtplib socket socketserver statistics string stringprep subprocess symtable tarfile "
    "tempfile textwrap threading timeit token tokenize trace traceback tracemalloc types typing "
    "uuid warnings wave weakref webbrowser zipfile"
)
MODULES = _NAMES.split()


def write_corpus(folder: Path, modules: Sequence[str] = MODULES) -> Path:
    """Write some modules of the interpreter's library as text files."""
    folder.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in modules:
        source = library / f"{name}.py"
        if source.exists():
            shutil.copy(source, folder / source.name)
    return folder


def tiny_config(corpus: Path, output: str, **changes: Any) -> dict[str, Any]:
    """Return a config of seconds a stage; `changes` are dotted keys with `__` for the dot."""
    config: dict[str, Any] = {
        "name": "tiny",
        "output": output,
        "seed": 3,
        "data": {
            "train": {"kind": "text", "path": str(corpus)},
            "validation_share": 0.1,
            "evaluate": {"docs": {"kind": "python-docs", "limit": 20}},
            "tokenizer": {"kind": "train", "vocab_size": 512},
            "seq_len": 64,
            "evaluation_sequences": 32,
        },
        "teacher": {
            "model": {
                "architecture": "llama",
                "options": {
                    "hidden_size": 96,
                    "intermediate_size": 192,
                    "num_hidden_layers": 2,
                    **SMALL_MODEL,
                },
            },
            "training": {
                "steps": 300,
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "optimiser": {"learning_rate": 4e-3},
                "zero": {"stage": 2},
                "validation_sequences": 16,
                "checkpoint_every": 100,
            },
        },
        "cache": {
            "codec": {"kind": "varopt", "k": 12, "head": 4},
            "sequences": 640,
            "sequences_per_shard": 16,
            "sequences_per_chunk": 8,
            "capture": {"micro_batch_size": 8},
        },
        "distill": {
            # Not the folder of all runs on this machine: a test must not find another's chunks.
            "cache_folder": str(corpus.parent / "chunks"),
            "student": {
                "model": {
                    "architecture": "llama",
                    "options": {
                        "hidden_size": 24,
                        "intermediate_size": 48,
                        "num_hidden_layers": 1,
                        **SMALL_MODEL,
                    },
                }
            },
            "curriculum": {"warmup_share": 0.25},
            "training": {
                "steps": 120,
                "global_batch_size": 8,
                "micro_batch_size": 2,
                "optimiser": {"learning_rate": 4e-3},
                "validation_sequences": 16,
                "log_every": 1,
                "checkpoint_every": 10,
            },
        },
        "evaluate": {
            "speed": {"turns": 6, "new_tokens": 8},
            "samples": {"prompts": 2, "new_tokens": 8},
            "audit": {"positions": 256},
        },
    }
    for key, value in changes.items():
        section = config
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    RunConfig.model_validate(config)
    return config


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write the config as a YAML file."""
    path.write_text(yaml.safe_dump(config))
    return path


def kdscale(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the installed program as a process, stdout and stderr in one stream of lines."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("kdscale")), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **CLEAN, **(env or {})},
    )


def run_program(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the installed program as a process and return (exit code, output)."""
    process = kdscale(*arguments, env=env)
    output, _ = process.communicate()
    return process.returncode, output


def run_kdscale(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the program inside this process, which has the imports, and return (code, output)."""
    output = io.StringIO()
    try:
        with environment(**CLEAN | (env or {})), redirect_stdout(output), redirect_stderr(output):
            main(arguments)
        code: Any = 0
    except SystemExit as ended:
        code = ended.code or 0
    return code, output.getvalue()


CLEAN = {"WANDB_MODE": "offline", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
"""Environment that keeps a test's run to itself: no W&B account, no colour, one thread a worker."""


def read_metrics(text: bytes) -> list[dict[str, Any]]:
    """Return the lines of a metrics file."""
    return [json.loads(line) for line in text.decode().splitlines()]
