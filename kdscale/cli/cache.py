"""`kdscale cache inspect | verify | repair`: what a cache holds, and whether it is sound."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from kdscale.store import Store

app = typer.Typer(help="Look into a logit cache.", no_args_is_help=True)

Workers = Annotated[int, typer.Option(min=1, help="Objects read at the same time.")]
Uri = Annotated[
    str, typer.Argument(metavar="URI", help="A cache's folder, or the output of a run with one.")
]


@app.command()
def inspect(
    uri: Uri,
    sample: Annotated[
        int, typer.Option(min=0, help="Also show what the teacher said at so many positions.")
    ] = 0,
) -> None:
    """Print what a cache holds, as YAML."""
    import yaml

    from kdscale.cache.maintenance import inspect as facts_of

    store = find_cache(uri)
    facts = facts_of(store)
    if sample:
        facts["sample"] = _sample(store, facts["identity"]["tokenizer"], sample)
    typer.echo(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def verify(uri: Uri, workers: Workers = 8) -> None:
    """Read every byte of a cache and compare checksums. Exit code 1 if something is bad."""
    from kdscale.cache.maintenance import verify as verify_cache

    store = find_cache(uri)
    report = verify_cache(store, workers)
    typer.echo(
        f"{store}: {report.objects} objects, {report.blocks} blocks, {report.bytes} bytes, "
        f"{len(report.bad)} bad"
    )
    for damage in report.bad:
        typer.echo(f"bad: {damage}")
    if report.bad:
        typer.echo("fix: kdscale cache repair, then run the cache stage again.", err=True)
    raise typer.Exit(1 if report.bad else 0)


@app.command()
def repair(uri: Uri, workers: Workers = 8) -> None:
    """Withdraw the damaged units of a cache, so that the cache stage captures them again."""
    from kdscale.cache.maintenance import repair as repair_cache
    from kdscale.cache.maintenance import verify as verify_cache

    store = find_cache(uri)
    units = repair_cache(store, verify_cache(store, workers).bad)
    if units:
        typer.echo(f"{store}: withdrew units {', '.join(map(str, units))}")
        typer.echo("Run the cache stage again to capture them.", err=True)
    else:
        typer.echo(f"{store}: nothing is damaged")


def find_cache(uri: str) -> "Store":
    """The cache at `uri`: a cache's own folder, or the one that the run at `uri` used last.

    Raises KdscaleError where there is none.
    """
    from kdscale.store import open_store

    store = open_store(uri)
    if _is_cache(store):
        return store
    name = _last_cache(store)
    if name is not None and _is_cache(store.child(f"cache/{name}")):
        return store.child(f"cache/{name}")
    raise KdscaleError(
        f"{store} is neither a finished cache nor the output of a run that has made one.",
        "Give <output>/cache/<fingerprint> or <output>; the cache stage has to be complete.",
    )


def _sample(store: "Store", digest: str, count: int) -> list[dict[str, Any]]:
    """Positions of the cache as text, by the tokenizer with that `digest` in the same output."""
    from transformers import AutoTokenizer

    from kdscale.cache.maintenance import sample
    from kdscale.cache.reader import CacheReader
    from kdscale.store import open_store

    output = open_store(store.url.rpartition("/cache/")[0])
    tokenizer = AutoTokenizer.from_pretrained(str(_tokenizer_folder(output, digest)))
    return [
        {**position, "targets": [f"{p:.4f} {text!r}" for text, p in position["targets"]]}
        for position in sample(CacheReader(store), tokenizer.decode, count)
    ]


def _tokenizer_folder(output: "Store", digest: str) -> Path:
    from kdscale.data.prepared import open_prepared

    for key in output.list("prepared/"):
        if key.endswith("/manifest.json"):
            prepared = open_prepared(output.child(key.removesuffix("/manifest.json")))
            if prepared.manifest["tokenizer"]["sha256"] == digest:
                return prepared.tokenizer_folder()
    raise KdscaleError(
        f"{output} holds no prepared data with the cache's tokenizer.",
        "Leave --sample out, or run this where the cache's rows were prepared.",
    )


def _is_cache(store: "Store") -> bool:
    # What no manifest names does not exist.
    return bool(store.list("manifests/"))


def _last_cache(output: "Store") -> str | None:
    """Fingerprint of the cache stage in the run's record; it names the cache's folder."""
    if not output.exists("run.json"):
        return None
    stages = json.loads(output.get("run.json"))["stages"]
    return stages.get("cache", {}).get("fingerprint")
