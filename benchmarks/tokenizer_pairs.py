"""Coverage and cost of pairs of tokenizers, over articles of BBC news.

    python benchmarks/assets.py && python benchmarks/assets.py gemma3-270m
    python benchmarks/tokenizer_pairs.py [--quick] [--turns 7]

Rows of the teacher's tokens, as `prepare` makes them of held-out articles, become sequences of each
student. Reported of a pair: its classes, the share of the student's targets that have a
distribution of the teacher, by kind of the label, processor seconds to build it, and text a
processor second through `Aligner.convert`, on one thread. Students' BPEs are trained on the other
articles, or on modules of the interpreter's library.

Then the loss of 256 positions, 576 wide, on one thread: on labels, on 16 ids in the student's own
tokens, and on 16 ids of the teacher through classes; variants take turns. The last line is one JSON
object, also kept in results/tokenizer_pairs.json; --quick takes small tokenizers and few articles,
and keeps nothing.
"""

import json
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ablation.own_tokens import read_tokens
from benchmarks.common import (
    ASSETS,
    GEMMA,
    TEACHER,
    Assets,
    Quick,
    Row,
    Turns,
    ratios,
    report,
    spread,
    take_turns,
)
from kdscale.data.rows.pack import Layout, RowBuilder, concatenate
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import encode, train_tokenizer
from kdscale.distill.alignment import Aligner, TokenizerPair
from kdscale.distill.alignment.student_data import class_map
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.types import Head, Rows, SparseTargets

LENGTH, OVERLAP, ARTICLES = 256, 32, 400
POSITIONS, WIDTH, IDS = 256, 576, 16
CPU = torch.device("cpu")


def main(quick: Quick = False, assets: Assets = ASSETS, turns: Turns = 7) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    texts = {name: _articles(assets, name) for name in ("train", "heldout")}
    held_out = texts["heldout"][: 8 if quick else ARTICLES]
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = [path.read_text(encoding="utf-8", errors="ignore") for path in library]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokens = {"SmolLM2": read_tokens(assets / TEACHER, folder / "smollm2")}
        for size in (2048,) if quick else (16_384, 8_192, 2_048):
            tokens[f"a BPE of such articles, {size}"] = _bpe(texts["train"], size, folder)
        names = [("SmolLM2", name) for name in tokens if name != "SmolLM2"]
        if not quick:
            tokens["Gemma 3"] = read_tokens(assets / GEMMA, folder / "gemma")
            tokens["a BPE of Python modules, 8192"] = _bpe(code, 8_192, folder / "code")
            names = [("Gemma 3", "SmolLM2"), ("SmolLM2", "Gemma 3"), *names]
            names.append(("SmolLM2", "a BPE of Python modules, 8192"))
        found = [measure(tokens, *pair, held_out, 1 if quick else turns) for pair in names]
    report("tokenizer_pairs", found, [], keep=not quick, articles=len(held_out), threads=1)


def _articles(assets: Path, name: str) -> list[str]:
    lines = (assets / "bbc" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _bpe(texts: list[str], size: int, folder: Path) -> TokenBytes:
    made = folder / f"bpe-{size}"
    train_tokenizer(texts, size, made)
    return read_tokens(made, folder / f"bpe-{size}-read")


def measure(
    tokens: dict[str, TokenBytes], teacher: str, student: str, texts: list[str], turns: int
) -> Row:
    """Return the row of one pair."""
    started = time.process_time()
    pair = TokenizerPair.build(tokens[teacher], tokens[student])
    build = time.process_time() - started
    rows = rows_of(pair.teacher, texts)
    aligner = Aligner(pair, 4 * LENGTH)
    started = time.process_time()
    coverage = aligner.convert(rows).coverage
    seconds = time.process_time() - started
    return {
        "teacher": teacher,
        "student": student,
        "teacher_ids": pair.teacher.vocab_size,
        "student_ids": pair.student.vocab_size,
        "classes": pair.class_count,
        "covered": coverage.share,
        "by_kind": coverage.by_kind(),
        "targets": int(coverage.targets.sum()),
        "build_seconds": build,
        "mb_a_second": float(rows.byte_counts.sum()) / seconds / 1e6,
        **loss_cost(pair, turns),
    }


def rows_of(tokens: TokenBytes, texts: list[str]) -> Rows:
    """Return the teacher's sequences of `texts`, as `prepare` makes them."""
    encoded = encode(tokens.json.decode(), tokens.info, texts)
    documents = ((each.tokens, each.byte_count) for found in encoded for each in found)
    layout = Layout(LENGTH, OVERLAP, truncate=False, pack=True, pad_id=tokens.info.pad_id)
    return concatenate(list(RowBuilder(layout).build(documents)), LENGTH)


def loss_cost(pair: TokenizerPair, turns: int) -> dict[str, Any]:
    """Return median seconds of the loss on labels, on own targets and on classes, and ratios."""
    generator = torch.Generator().manual_seed(0)
    theirs, mine = pair.teacher.vocab_size, pair.student.vocab_size

    def draw(size: int) -> torch.Tensor:
        return torch.randint(size, (POSITIONS, IDS), generator=generator)

    probs = torch.rand(POSITIONS, IDS, generator=generator).softmax(-1)
    own = SparseTargets(draw(mine), probs)
    through = class_map(pair, CPU).targets(
        SparseTargets(draw(theirs), probs), torch.ones(POSITIONS, dtype=torch.bool)
    )
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(mine, WIDTH, generator=generator).div_(WIDTH**0.5).requires_grad_()
    labels = torch.randint(mine, (POSITIONS,), generator=generator)
    head = Head(weight, None, mine)

    def step(found: Any) -> None:
        at = None if found is None else lambda part, logits: found
        head_and_loss(hidden, head, labels, at, Objective(0.9)).objective.backward()
        hidden.grad = weight.grad = None

    variants = {
        "labels": lambda: step(None),
        "own": lambda: step(own),
        "classes": lambda: step(through),
    }
    taken = take_turns(variants, turns)
    return {
        "milliseconds": {
            name: 1e3 * spread([turn[name] for turn in taken])["median"] for name in variants
        },
        "classes_over_own": spread(ratios(taken, "classes", "own")),
    }


if __name__ == "__main__":
    typer.run(main)
