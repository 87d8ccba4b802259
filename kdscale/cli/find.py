"""Where a cache is that a user speaks of, and which run makes it."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from kdscale.errors import KdscaleError

if TYPE_CHECKING:
    from kdscale.config import RunConfig
    from kdscale.store import Store


def find_cache(uri: str, *, published: bool = True) -> "Store":
    """The cache at `uri`: a cache's own folder, or the one that the run at `uri` used last.

    Raises KdscaleError where there is none, or none that is `published`.
    """
    from kdscale.store import open_store

    store = open_store(uri)
    for candidate in chain([store], _caches_of_run(store)):
        if candidate.list("manifests/" if published else "plans/"):
            return candidate
    raise KdscaleError(
        f"{store} is neither a finished cache nor the output of a run that has made one.",
        "Give <output>/cache/<fingerprint> or <output>; the cache stage has to be complete.",
    )


def find_maker(uri: str, store: "Store") -> "RunConfig | None":
    """The config of a run that captures into `store`: that at `uri`, or that of the folder the
    cache is in."""
    from kdscale.run.artifacts import RunArtifacts, resolve_paths
    from kdscale.store import open_store

    around = store.url.rpartition("/cache/")[0]
    for output in [uri, around] if around else [uri]:
        config = _config_of(open_store(output))
        if config is not None and config.cache.reuse is None:
            config = resolve_paths(config)
            if store in [place for place, _ in RunArtifacts(config).cache_stores]:
                return config
    return None


def _caches_of_run(output: "Store") -> "Iterator[Store]":
    """Where the run at `output` has its cache: inside, or where its config says."""
    from kdscale.store import open_store

    if output.exists("run.json"):
        stages = json.loads(output.get("run.json"))["stages"]
        if name := stages.get("cache", {}).get("fingerprint"):
            yield output.child(f"cache/{name}")
    if config := _config_of(output):
        elsewhere = config.cache.append_to or config.cache.reuse
        if isinstance(elsewhere, str):
            yield open_store(elsewhere)


def _config_of(output: "Store") -> "RunConfig | None":
    """The config of the run at `output`, wherever it has been moved since; None where no run is."""
    from kdscale.config import parse_config
    from kdscale.config.text import decode_text

    if not output.exists("config.resolved.yaml"):
        return None
    origin = f"{output}/config.resolved.yaml"
    text = decode_text(output.get("config.resolved.yaml"), origin)
    return parse_config(text, origin=origin).model_copy(update={"output": output.url})
