"""Find the cache that a user names, and the run that makes it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdscale.config import RunConfig
    from kdscale.store import Store


def find_cache(uri: str, *, published: bool = True) -> "Store":
    """Return the cache at `uri`: a cache's folder, or the one that the run there used last.

    Raises KdscaleError where there is none, or none that is `published`.
    """
    from kdscale.run.finished_run import find_cache as found_at

    return found_at(uri, published=published)


def find_maker(uri: str, store: "Store") -> "RunConfig | None":
    """Return the config of a run that captures into `store`; None where there is none.

    It is the run at `uri`, or that of the folder that the cache is in.
    """
    from kdscale.run.artifacts import RunArtifacts, resolve_paths
    from kdscale.run.finished_run import FinishedRun
    from kdscale.store import open_store

    around = store.url.rpartition("/cache/")[0]
    for output in [uri, around] if around else [uri]:
        run = FinishedRun(open_store(output))
        if run.config_text and run.config.cache.reuse is None:
            # Wherever the output has been moved since.
            config = resolve_paths(run.config.model_copy(update={"output": run.output.url}))
            if store in [place for place, _ in RunArtifacts(config).cache_stores]:
                return config
    return None
