"""`kdscale cache ...`: what a cache holds, whether it is sound, and what keeps it so."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdscale.cli import options
from kdscale.cli.audit import audit
from kdscale.cli.cache_import import import_
from kdscale.cli.find import find_cache, find_maker
from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from kdscale.store import Store

app = typer.Typer(help="Inspect and maintain a logit cache.", no_args_is_help=True)
app.command("audit")(audit)
app.command("import")(import_)

Workers = Annotated[int, typer.Option(min=1, help="Objects read at the same time.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")]
Uri = Annotated[
    str, typer.Argument(metavar="URI", help="A cache's folder, or the output of a run with one.")
]
Grace = Annotated[
    int,
    typer.Option(
        parser=options.duration,
        metavar="TIME",
        help="Keep objects younger than this: 90s, 30m, 24h.",
    ),
]


@app.command()
def inspect(
    uri: Uri,
    sample: Annotated[
        int, typer.Option(min=0, help="Also show what the teacher said at so many positions.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Print what a cache holds."""
    from kdscale.cache.maintain.inspect import inspect as facts_of

    store = find_cache(uri)
    facts = facts_of(store)
    if sample:
        facts["sample"] = _sample(store, facts["identity"]["tokenizer"], sample)
    _print(facts, as_json)


@app.command()
def stats(uri: Uri, as_json: Json = False) -> None:
    """Print where a cache's bytes go, how its rows are spread, and what lies about unused."""
    from kdscale.cache.maintain.stats import stats as stats_of

    _print(stats_of(find_cache(uri)), as_json)


@app.command()
def verify(
    uri: Uri,
    workers: Workers = 8,
    sample: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            callback=options.finite,
            help="Check this share of the shards only.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the shards of a sample.")] = 0,
) -> None:
    """Read a cache, compare all checksums, decode all chunks. Exit code 1 if something is bad."""
    from kdscale.cache.maintain.verify import verify as verify_cache
    from kdscale.workers.progress import stage_progress

    store = find_cache(uri)
    with stage_progress("verify") as shown:
        report = verify_cache(
            store, workers=workers, sample=sample, seed=seed, progress=shown.update
        )
    typer.echo(
        f"{store}: {report.shards} of {report.shards_of_cache} shards, {report.objects} objects, "
        f"{report.chunks} chunks, {report.bytes} bytes, {len(report.bad)} bad"
    )
    for damage in report.bad:
        typer.echo(f"bad: {damage}")
    if report.bad:
        typer.echo(f"fix: kdscale cache repair {store}", err=True)
    raise typer.Exit(1 if report.bad else 0)


@app.command()
def repair(
    uri: Uri,
    workers: Workers = 8,
    withdraw_only: Annotated[
        bool,
        typer.Option("--withdraw-only", help="Leave the capture of bad shards to a later run."),
    ] = False,
) -> None:
    """Restore damaged objects, and capture again the shards that only the teacher can give.

    Exit code 1 if something cannot be repaired.
    """
    from kdscale.cache.maintain.repair import repair as repair_cache
    from kdscale.store import single_commits
    from kdscale.workers.progress import stage_progress

    store = find_cache(uri)
    with (
        stage_progress("repair") as shown,
        single_commits(store, "kdscale cache repair") as put_if_absent,
    ):
        report = repair_cache(
            store, workers=workers, put_if_absent=put_if_absent, progress=shown.update
        )
    for key in report.restored:
        typer.echo(f"restored {key}")
    for damage in report.lost:
        typer.echo(f"cannot repair: {damage}")
    if report.lost:
        typer.echo("fix: restore what is named from a copy, or capture a new cache.", err=True)
        raise typer.Exit(1)
    if report.withdrawn:
        typer.echo(f"{store}: withdrew shards {', '.join(map(str, report.withdrawn))}")
        _capture_again(uri, store, report.withdrawn, withdraw_only)
    elif not report.restored:
        typer.echo(f"{store}: nothing is damaged")


@app.command()
def gc(
    uri: Uri,
    grace: Grace = "24h",  # type: ignore[assignment]  # typer parses the default like any text
    keep: Annotated[
        int | None, typer.Option(min=1, help="Also delete all but the newest N manifests.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list objects to delete.")
    ] = False,
) -> None:
    """Delete objects that nothing names, and what killed writers left."""
    from kdscale.cache.maintain.gc import gc as collect

    store = find_cache(uri, published=False)
    report = collect(store, grace, dry_run, keep=keep)
    verb = "would delete" if dry_run else "deleted"
    for entry in report.entries:
        typer.echo(f"{verb} {entry.key} ({entry.size} bytes)")
    typer.echo(f"{store}: {verb} {len(report.entries)} objects, {report.bytes} bytes")


@app.command()
def export(
    uri: Uri,
    out: Annotated[str, typer.Argument(metavar="OUT", help="An empty folder, or any URL.")],
    file_format: Annotated[
        Literal["parquet", "safetensors"], typer.Option("--format", help="Output file format.")
    ] = "parquet",
    rows: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
) -> None:
    """Write a cache's rows, decoded, for programs that know nothing of kdscale."""
    from kdscale.cache.maintain.export import export as export_rows
    from kdscale.cache.read.reader import CacheReader
    from kdscale.store import open_store
    from kdscale.workers.progress import stage_progress

    store, target = find_cache(uri), open_store(out)
    with stage_progress("export") as shown:
        index = export_rows(
            CacheReader(store), target, file_format, rows=rows, progress=shown.update
        )
    typer.echo(f"{target}: {index['rows']} rows in {len(index['files'])} files")


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        import yaml

        from kdscale.utils.text_table import terminal_width

        # One column less: YAML breaks a line behind the word that reaches its width.
        width = (terminal_width() or 81) - 1
        text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=width)
        typer.echo(text, nl=False)


def _sample(store: "Store", digest: str, count: int) -> list[dict[str, Any]]:
    """Positions of the cache as text, by the tokenizer with that `digest` in the same output."""
    from transformers import AutoTokenizer

    from kdscale.cache.maintain.inspect import sample
    from kdscale.cache.read.reader import CacheReader

    with TemporaryDirectory(prefix="kdscale-tokenizer-") as scratch:
        folder = str(_tokenizer_folder(store, digest, Path(scratch)))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return [
        {**position, "targets": [f"{p:.4f} {text!r}" for text, p in position["targets"]]}
        for position in sample(CacheReader(store), tokenizer.decode, count)
    ]


def _tokenizer_folder(store: "Store", digest: str, scratch: Path) -> Path:
    """Return a folder with the cache's tokenizer: its own, or that of the prepared data beside."""
    from kdscale.cache.origin import tokenizer_folder
    from kdscale.data.rows.prepared import open_prepared
    from kdscale.store import open_store

    # Caches of earlier versions have no more of it than tokenizer.json.
    if store.exists("origin/tokenizer_config.json"):
        own = tokenizer_folder(store, scratch)
        assert own is not None
        return own
    output = open_store(store.url.rpartition("/cache/")[0])
    for key in output.list("prepared/"):
        if key.endswith("/manifest.json"):
            prepared = open_prepared(output.child(key.removesuffix("/manifest.json")))
            if prepared.manifest["tokenizer"]["sha256"] == digest:
                return prepared.tokenizer_folder()
    raise KdscaleError(
        f"{output} holds no prepared data with the cache's tokenizer.",
        "Leave --sample out, or run this where the cache's rows were prepared.",
    )


def _capture_again(uri: str, store: "Store", shards: list[int], withdraw_only: bool) -> None:
    """Run the cache stage of the run that made the cache, if that is to be found."""
    from kdscale.cache.format.records import commit_key
    from kdscale.cache.origin import read_facts

    config = None if withdraw_only else find_maker(uri, store)
    if config is not None:
        from kdscale.run.pipeline import run_pipeline

        run_pipeline(config, only="cache")
    missing = [shard for shard in shards if not store.exists(commit_key(shard))]
    if missing:
        again = (
            "imported again: by the `kdscale cache import` command that imported them"
            if "import" in read_facts(store)
            else "captured again: with the config that captured them, `kdscale run CONFIG --only "
            "cache`"
        )
        typer.echo(f"fix: shards {', '.join(map(str, missing))} are to be {again}.", err=True)
    else:
        typer.echo(f"{store}: all of them are captured again")
