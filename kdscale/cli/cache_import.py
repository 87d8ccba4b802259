"""`kdscale cache import`: a cache from a top-k set that another tool captured."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdscale.cli import options
from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from kdscale.importing.survey import Survey
    from kdscale.importing.write import ImportJob, Teacher

_COMPRESSION = "compression_config.yaml"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder, file or glob: Parquet or Arrow of DistillKit, tars of Megatron-LM, "
        "Parquet or JSON lines with columns as vLLM and axolotl have them.",
    ),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="An empty folder or URL for the cache.")]
TeacherName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The teacher: its folder, URL or hub name (@REVISION may follow).",
    ),
]
TokenizerPlace = Annotated[
    str | None,
    typer.Option(metavar="PLACE", help="Folder, URL or hub name. Default: the teacher's."),
]
SeqLen = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of a sequence. Default: those of the longest."),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Keep so many ids a position. Default: all.")]
ValueMeaning = Annotated[
    Literal["auto", "logprobs", "probs", "logits", "renormalised"],
    typer.Option(
        help="Meaning of the values. Of logits, and of log-probabilities that were "
        "renormalised over the k, the rest's mass is not known. auto: as the layout has them."
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        min=0.01, callback=options.finite, help="Temperature that the teacher's logits had."
    ),
]
Align = Annotated[
    Literal["auto", "next", "own"],
    typer.Option(
        help="Token that an entry of plain columns is about, where there are as many as "
        "tokens. auto: its own if the first entry is empty, else the next."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=NAME",
        help="Column for tokens, ids, values, entries or messages; may be repeated.",
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(metavar="PLACE", help="Tokens of the samples, for Megatron-LM's tars."),
]
Compression = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help=f"DistillKit's compression config. Default: {_COMPRESSION} in SOURCE.",
    ),
]
Pack = Annotated[
    bool, typer.Option("--pack/--no-pack", help="Put several short texts into a sequence.")
]
AllowMisaligned = Annotated[
    bool,
    typer.Option("--allow-misaligned", help="Import a set that seems to belong to other tokens."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check the whole set and say what would be written.")
]


def import_(
    source: Source,
    out: Out,
    teacher: TeacherName,
    tokenizer: TokenizerPlace = None,
    seq_len: SeqLen = None,
    top_k: TopK = None,
    values: ValueMeaning = "auto",
    temperature: Temperature = 1.0,
    align: Align = "auto",
    column: Columns = None,
    tokens: Tokens = None,
    compression: Compression = None,
    pack: Pack = True,
    allow_misaligned: AllowMisaligned = False,
    dry_run: DryRun = False,
) -> None:
    """Convert a top-k set that another tool captured to a cache of codec `topk`.

    The whole set is checked before anything is written. An import that was killed continues when
    the same command is given again.
    """
    from transformers.utils.logging import disable_progress_bar

    from kdscale.importing.detect import open_reader
    from kdscale.importing.vocabulary import Vocabulary, adopt
    from kdscale.importing.write import ImportJob
    from kdscale.store import open_store

    disable_progress_bar()
    named = _teacher(teacher)
    with tempfile.TemporaryDirectory(prefix="kdscale-import-") as scratch:
        place = named.source if tokenizer is None else tokenizer
        revision = named.revision if tokenizer is None else None
        info = adopt(place, revision, Path(scratch))
        vocabulary = Vocabulary(Path(scratch))
        reader = open_reader(
            source,
            tokens=tokens,
            compression=_compression(source, compression),
            columns=_columns(column or []),
            align=align,
            token_of=vocabulary.token_of,
            tokens_of=vocabulary.tokens_of,
        )
        job = ImportJob(
            reader=reader,
            out=open_store(out),
            teacher=named,
            tokenizer=Path(scratch),
            info=info,
            decode=vocabulary.decode,
            values=None if values == "auto" else values,
            temperature=temperature,
            seq_len=seq_len,
            top_k=top_k,
            pack=pack,
            allow_misaligned=allow_misaligned,
        )
        _carry_out(job, dry_run)


def _carry_out(job: "ImportJob", dry_run: bool) -> None:
    """Survey the set, import it, and print the figures of both."""
    from kdscale.store import single_commits
    from kdscale.workers.progress import stage_progress

    with stage_progress("import") as shown:
        # Before the store is touched.
        resumes = job.existing() is not None and not dry_run
        found = None if resumes else job.survey(shown.update)
        if not dry_run:
            with single_commits(job.out, "kdscale cache import") as put_if_absent:
                job.run(found, shown.update, put_if_absent)
    if found is not None:
        _show(found, job, dry_run)
    if not dry_run:
        _show_cache(job)


def _show_cache(job: "ImportJob") -> None:
    from kdscale.cache.maintain.inspect import inspect

    facts = inspect(job.out)
    about = facts["identity"]["import"]
    typer.echo(
        f"{job.out}: {facts['rows']:,} sequences of {facts['identity']['seq_len']}, "
        f"{facts['targets']:,} targets, {facts['bytes']:,} bytes; {_name(about, facts['codec'])}"
    )


def _name(about: dict[str, Any], codec: dict[str, Any]) -> str:
    """Name what a student learns from."""
    rest = (
        "the other ids are one bucket of known mass (ghost)"
        if about["rest"] == "ghost"
        else "the mass of the other ids is not known, and taken as none"
    )
    return f"top {codec['k']} of {about['layout']}, biased: {rest}"


def _show(found: "Survey", job: "ImportJob", dry_run: bool) -> None:
    """Print the figures of a survey, and what a dry run would write."""
    from kdscale.cache.codecs import make_codec
    from kdscale.config.cache import TopkCodec
    from kdscale.importing.write import VALUE_BITS

    codec = make_codec(TopkCodec(k=found.k, value_bits=VALUE_BITS), job.info.vocab_size)
    size = found.rows * found.seq_len * codec.bytes_per_position
    typer.echo(f"layout: {found.layout}, values: {found.meaning.values}")
    typer.echo(
        f"sequences: {found.sequences:,} ({found.duplicates:,} repetitions left out, "
        f"{found.without_target:,} without target, {found.split:,} longer than seq_len)"
    )
    typer.echo(f"tokens: {found.tokens:,}, targets: {found.targets:,}")
    scaled = f"; {found.scaled:,} positions above 1, scaled to it" if found.scaled else ""
    typer.echo(
        f"mass of the listed ids: mean {found.mean_mass:.4f}, least {found.least_mass:.4f}{scaled}"
    )
    for shift in ("-1", "0", "1"):
        fit = found.alignment[shift]
        typer.echo(
            f"labels moved by {shift}: mean log-probability {fit['mean_log_prob']:.3f}, listed at "
            f"{fit['listed']:.1%} of {found.alignment['positions']:,} positions"
        )
    if not dry_run:
        return
    typer.echo(
        f"would write to {job.out}: {found.rows:,} sequences of {found.seq_len}, at most "
        f"{size:,} bytes; {_name(found.as_dict(), codec.describe())}"
    )


def _columns(given: list[str]) -> dict[str, str]:
    found = {}
    for pair in given:
        role, equals, name = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--column {pair!r}: write ROLE=NAME.")
        found[role] = name
    return found


def _compression(source: str, given: str | None) -> tuple[str, dict[str, Any]] | None:
    """Return the name and content of the compression config, if there is one."""
    import yaml

    from kdscale.store import file_at, open_store

    if given is None:
        store, key = open_store(source), _COMPRESSION
        if not store.exists(key):
            return None
    else:
        store, key = file_at(given)
    try:
        found = yaml.safe_load(store.get(key))
    except (FileNotFoundError, yaml.YAMLError) as error:
        raise KdscaleError(
            f"The compression config {store}/{key} cannot be read: {error}.",
            "Give DistillKit's compression_config.yaml.",
        ) from error
    if not isinstance(found, dict):
        raise KdscaleError(f"{store}/{key} is no mapping.", "Give compression_config.yaml.")
    return f"{store}/{key}", found


def _teacher(named: str) -> "Teacher":
    """Return the teacher by its name, with the digest that a run knows it by."""
    from kdscale.importing.write import Teacher
    from kdscale.models.hf_folder import is_folder, local_folder, weights_digest
    from kdscale.store import open_store

    if is_folder(named):
        source = open_store(named).url
        return Teacher(source, None, weights_digest(local_folder(source)))
    name, _, revision = named.partition("@")
    if named.startswith((".", "/", "~")) or not name:
        raise KdscaleError(
            f"The teacher's folder {named!r} does not exist.",
            "Give a folder with its weights, or its name; it need not be at hand.",
        )
    return Teacher(name, revision or None, f"{name}@{revision or 'main'}")
