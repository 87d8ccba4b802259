"""Where the teacher of a cache is: the one of the run beside it, or the one that is named."""

from pathlib import Path

from kdscale.cache.spec import Identity
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import ModelReference, weights_digest
from kdscale.run.finished_run import FinishedRun
from kdscale.store import Store, open_store


def find_teacher(cache: Store, identity: Identity, named: str | None) -> ModelReference:
    """The model that the cache was captured from.

    named: a folder, a URL or a hub name; without it the teacher of the run that `cache` lies in is
    taken. KdscaleError where there is none, or where it is not the teacher of the cache.
    """
    found = _of_run(cache) if named is None else _named(named, identity)
    if found.digest != identity["teacher"]:
        raise KdscaleError(
            f"The teacher at {found.source} has the digest {found.digest}, the cache was captured "
            f"from {identity['teacher']}.",
            "Give the cache's own teacher: kdscale cache audit URI --teacher FOLDER.",
        )
    return found


def _of_run(cache: Store) -> ModelReference:
    output, lies_in_run, _ = cache.url.rpartition("/cache/")
    found = FinishedRun(open_store(output)).model("teacher") if lies_in_run else None
    if found is None:
        raise KdscaleError(
            f"There is no teacher beside the cache {cache}.",
            "Name it: kdscale cache audit URI --teacher FOLDER (or a hub name).",
        )
    return found


def _named(source: str, identity: Identity) -> ModelReference:
    reference = ModelReference("", source, None, "", 0)
    if not reference.is_hub_name:
        digest = weights_digest(Path(reference.local()))
        return ModelReference("", source, None, digest, 0)
    # A hub's model is known by name and revision: the revision is the cache's.
    revision = str(identity["teacher"]).rpartition("@")[2]
    given = None if revision == "main" else revision
    return ModelReference("", source, given, f"{source}@{revision}", 0)
