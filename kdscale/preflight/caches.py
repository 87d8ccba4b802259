"""Caches and base runs that a run builds on, compared with it field by field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdscale.cache.codecs import make_codec
from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.origin import read_facts, read_tokenizer
from kdscale.cache.read.concat import check_alike, drawn_rows
from kdscale.cache.spec import FORMAT, Identity
from kdscale.config import RunConfig
from kdscale.config.base import Config
from kdscale.config.loss import check_alignable, check_defined
from kdscale.config.operational import recipe
from kdscale.data.tokenizer import TOKENIZER_FILE
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import is_folder, read_marker, weights_digest
from kdscale.preflight.context import KnownData
from kdscale.run.artifacts import NEEDED_OF_CACHE, NEEDED_OF_CACHES, RunArtifacts
from kdscale.run.finished_run import FinishedRun
from kdscale.store import Store, open_store

# Bytes of weights whose digest takes no more than a second or two.
_READ_AT_ONCE = 2 << 30
_MADE_BEFORE = "the cache was made by an older version, which kept no more than a digest"


def other_caches(run: RunArtifacts) -> list[tuple[str, Store, float]]:
    """Return (config field, store, weight) of each cache that another run made."""
    cache = run.config.cache
    if cache.reuse is None and cache.append_to is None:
        return []
    fields = ["cache.append_to" if cache.reuse is None else "cache.reuse"]
    if isinstance(cache.reuse, tuple):
        fields = [f"cache.reuse.{number}.url" for number in range(len(cache.reuse))]
    stores = zip(fields, run.cache_stores, strict=True)
    return [(field, store, weight) for field, (store, weight) in stores]


def check_caches(run: RunArtifacts, data: KnownData | None) -> None:
    """Refuse a cache to reuse or append to that was made for something else.

    Each field that differs is named with both values, as far as they are known. Raises
    KdscaleError.
    """
    caches = other_caches(run)
    if not caches:
        return
    known = _known(run, data)
    manifests = [load_manifest(store) for _, store, _ in caches]
    for (field, store, weight), manifest in zip(caches, manifests, strict=True):
        found = manifest.identity
        lines = [
            _line(run, store, found, name, known[name], data)
            for name in _needed(run)
            if name in known and _plain(found.get(name)) != _plain(known[name])
        ]
        if lines:
            raise KdscaleError(
                f"The cache {store} ({field}) was made for something else:\n"
                + "\n".join(f"  {line}" for line in lines),
                "Make the config agree with the cache, or let this run capture its own cache.",
            )
        drawn_rows(manifest.rows, weight)
    check_alike([manifest.identity for manifest in manifests])
    if run.config.cache.reuse is not None and run.config.distill.targets == "cache":
        kind = manifests[0].identity["codec"]["kind"]
        check_defined(run.config.distill.loss.divergence.kind, kind)
        if run.config.aligns:
            check_alignable(kind)


def _needed(run: RunArtifacts) -> tuple[str, ...]:
    reuse = run.config.cache.reuse
    if isinstance(reuse, tuple):
        return NEEDED_OF_CACHES
    return (
        NEEDED_OF_CACHE
        if reuse is not None
        else (*NEEDED_OF_CACHE, "codec", "dtype", "seed", "classes")
    )


def _known(run: RunArtifacts, data: KnownData | None) -> Identity:
    """Return the fields of the identity that the run's cache would have, as far as known."""
    config = run.config
    found: Identity = {
        "format": FORMAT,
        "task": config.task,
        "seq_len": config.data.seq_len,
        "temperature": config.cache.temperature,
        "dtype": "bfloat16" if config.cache.capture.workers.gpus else "float32",
        "seed": config.seed,
    }
    if data is not None and data.digest is not None:
        found["tokenizer"] = data.digest
    classifies = config.task == "sequence-classification"
    if data is not None and data.is_exact and (data.classes or not classifies):
        found["vocab_size"] = data.outputs
        found["codec"] = make_codec(config.cache.codec, data.outputs).describe()
        if data.classes:
            found["classes"] = list(data.classes)
    teacher = _teacher_digest(run)
    return found if teacher is None else found | {"teacher": teacher}


def _teacher_digest(run: RunArtifacts) -> str | None:
    """Return the digest of the complete teacher, or of one that its name identifies.

    None where the weights would have to be read for it.
    """
    marker = read_marker(run.model_store("teacher"))
    if marker is not None and marker.fingerprint == run.teacher_fingerprint:
        return marker.digest
    teacher = run.config.teacher
    if teacher.load is None or teacher.training is not None:
        return None
    if not is_folder(teacher.load):
        return f"{teacher.load}@{teacher.revision or 'main'}"
    folder = open_store(teacher.load).local_path()
    files = [] if folder is None else list(folder.glob("*.safetensors"))
    if folder is None or not files or sum(f.stat().st_size for f in files) > _READ_AT_ONCE:
        return None
    return weights_digest(folder)


def _line(
    run: RunArtifacts,
    store: Store,
    found: Identity,
    name: str,
    expected: Any,
    data: KnownData | None,
) -> str:
    """Describe the difference in the field `name`."""
    have = found.get(name)
    if name == "tokenizer":
        theirs = read_tokenizer(store, found)
        if theirs is None or data is None or data.tokenizer is None:
            return f"tokenizer: another one; {_MADE_BEFORE}"
        return f"tokenizer: {describe_difference(theirs, data.tokenizer)}"
    if name == "teacher":
        source = read_facts(store).get("teacher", {}).get("source")
        theirs_is = (
            f"{source} (weights {have})" if source else f"weights {have}, and {_MADE_BEFORE}"
        )
        mine = run.config.teacher.load or "the one that is trained here"
        return f"teacher: the cache has that of {theirs_is}; this run {mine} (weights {expected})"
    if isinstance(have, dict) and isinstance(expected, dict):
        keys = [key for key in {**have, **expected} if have.get(key) != expected.get(key)]
        return "; ".join(_both(f"{name}.{key}", have.get(key), expected.get(key)) for key in keys)
    return _both(name, have, expected)


def _both(name: str, have: Any, expected: Any) -> str:
    return f"{name}: the cache has {json.dumps(have)}, this run {json.dumps(expected)}"


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))


_SHARED = ("task", "seed", "data", "teacher", "cache")


def differing_fields(run: RunArtifacts) -> list[str]:
    """Return a line for each field of data, teacher and cache that differs from the base.

    Compared with the config that the base was started with; none where that is missing.
    """
    try:
        base = FinishedRun(run.source).config
    except KdscaleError:
        return []
    return [
        f"{field}: the base has {json.dumps(have)}, this run {json.dumps(want)}"
        for field, have, want in _differing(_shared(base), _shared(run.config))
    ]


def _shared(config: RunConfig) -> dict[str, Any]:
    parts = {name: getattr(config, name) for name in _SHARED}
    return {n: recipe(part) if isinstance(part, Config) else part for n, part in parts.items()}


def _differing(theirs: Any, mine: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if not (isinstance(theirs, dict) and isinstance(mine, dict)):
        if theirs != mine:
            yield name, theirs, mine
        return
    for key in {**theirs, **mine}:
        field = f"{name}.{key}" if name else str(key)
        yield from _differing(theirs.get(key), mine.get(key), field)


def describe_difference(theirs: bytes, mine: Path) -> str:
    """Describe how the cache's tokenizer.json differs from that in the folder `mine`.

    The first id, else the first setting.
    """
    there = json.loads(theirs)
    here = json.loads((mine / TOKENIZER_FILE).read_text(encoding="utf-8"))
    their_ids, my_ids = _tokens(there), _tokens(here)
    differing = sorted(
        number
        for number in their_ids.keys() | my_ids.keys()
        if their_ids.get(number) != my_ids.get(number)
    )
    if differing:
        first = differing[0]
        sizes = f"{len(their_ids):,} ids in the cache, {len(my_ids):,} here"
        return (
            f"id {first} is {_shown(their_ids, first)} in the cache and {_shown(my_ids, first)} "
            f"here, the first of {len(differing):,} that differ ({sizes})"
        )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return f"all {len(my_ids):,} ids are the same, but {_setting(name, there, here)}"
    return "the same ids and settings, in another file: saved by another version of transformers"


def _setting(name: str, there: dict[str, Any], here: dict[str, Any]) -> str:
    have, want = there.get(name), here.get(name)
    if name == "model" and isinstance(have, dict) and isinstance(want, dict):
        keys = [key for key in have.keys() | want.keys() if have.get(key) != want.get(key)]
        return f"`model.{min(keys)}` of tokenizer.json differs"
    if name == "added_tokens" and isinstance(have, list) and isinstance(want, list):
        for one, other in zip(have, want, strict=False):
            if one != other:
                return f"the special token {one['content']!r} has other settings"
    return f"`{name}` of tokenizer.json is {_short(have)} in the cache and {_short(want)} here"


def _tokens(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Return the tokens by id, added ones too."""
    vocabulary = tokenizer["model"].get("vocab", {})
    if isinstance(vocabulary, dict):
        found = {int(number): token for token, number in vocabulary.items()}
    else:
        # Unigram models list (token, score) by id.
        found = {number: token for number, (token, _) in enumerate(vocabulary)}
    return found | {each["id"]: each["content"] for each in tokenizer.get("added_tokens", ())}


def _shown(tokens: dict[int, str], number: int) -> str:
    return repr(tokens[number]) if number in tokens else "no token"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
