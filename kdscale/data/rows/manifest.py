"""Manifest of prepared data: published last, checked first, summarised for the terminal."""

import json
from typing import Any

from kdscale.data.chat.template import ChatTemplate
from kdscale.data.sources.folders import describe_unread
from kdscale.errors import KdscaleError
from kdscale.store import Store

MANIFEST = "manifest.json"
FORMAT = "kdscale-prepared"
# Also raised when the same input would give other rows, because fingerprints include it.
VERSION = 2
AUGMENTED = "augmented"
"""The split with the varied copies of the training documents."""


def write_manifest(store: Store, manifest: dict[str, Any]) -> None:
    """Publish the prepared data by writing its manifest, the last write."""
    text = json.dumps(manifest, indent=1) + "\n"
    store.put(MANIFEST, text.encode())


def read_manifest(store: Store) -> tuple[dict[str, Any], bytes]:
    """Return the manifest and its stored bytes.

    Raises KdscaleError where it is missing or of another version.
    """
    try:
        raw = store.get(MANIFEST)
    except FileNotFoundError as error:
        raise KdscaleError(
            f"There is no prepared data in {store}: {MANIFEST} is missing.",
            "Run the prepare stage first: kdscale run CONFIG --only prepare.",
        ) from error
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise KdscaleError(
            f"{MANIFEST} in {store} is not valid JSON: {error}",
            f"Delete {store} and run the prepare stage again.",
        ) from error
    found = (manifest.get("format"), manifest.get("version"))
    if found != (FORMAT, VERSION):
        raise KdscaleError(
            f"{store} holds {found[0]!r} version {found[1]!r}; this kdscale reads {FORMAT!r} "
            f"version {VERSION}.",
            "Run the prepare stage again with this kdscale, or read it with the one that wrote it.",
        )
    return manifest, raw


def summarise(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, summary) lines for the terminal: a source, a split, the tokenizer each."""
    undecodable = manifest.get("undecodable", {})
    lines = [
        (name, _source_line(counts, undecodable.get(name, [])))
        for name, counts in manifest["sources"].items()
    ]
    lines += [
        (f"not read in {each['place']}", describe_unread(each["counts"], each["examples"]))
        for places in manifest.get("unread", {}).values()
        for each in places
    ]
    mixture = manifest["sources"]["train"].get("mixture", ())
    lines += [(f"source {share['name']}", _share_line(share)) for share in mixture]
    tokenizer = manifest["tokenizer"]
    asked = tokenizer.get("requested_vocab_size", tokenizer["vocab_size"])
    fewer = (
        f", {asked:,} were asked for: the text has no more"
        if asked > tokenizer["vocab_size"]
        else ""
    )
    lines.append(("tokenizer", f"{tokenizer['vocab_size']:,} tokens{fewer}"))
    if tokenizer.get("chat") is not None:
        lines.append(("chat template", ChatTemplate.from_dict(tokenizer["chat"]).summary))
    lines += [
        (f"{name} rows", _split_line(split["counts"])) for name, split in manifest["splits"].items()
    ]
    return lines


def _share_line(share: dict[str, Any]) -> str:
    """Summarise one source of a mixture."""
    return (
        f"weight {share['weight']:g}: {share['kept']:,} of {share['usable']:,} documents kept, "
        f"{share['bytes']:,} bytes; {share['read']:,} read"
    )


def _source_line(counts: dict[str, Any], undecodable: list[str]) -> str:
    steps = counts.get("steps", [])
    dropped = {f"by {step['kind']}": step["dropped"] for step in steps}
    changed = {f"by {step['kind']}": step["changed"] for step in steps}
    dropped |= {
        "undecodable": counts["undecodable"],
        "short": counts["dropped_short"],
        "duplicate": counts["dropped_duplicate"],
        "nearly duplicate": counts.get("dropped_near_duplicate", 0),
        "also in train": counts["leaked"],
    }
    if undecodable:
        more = ", ..." if counts["undecodable"] > len(undecodable) else ""
        named = f"undecodable ({', '.join(undecodable)}{more})"
        dropped = {named if what == "undecodable" else what: n for what, n in dropped.items()}
    parts = [f"read {counts['read']:,} documents, kept {counts['kept']:,}"]
    for did, numbers in (("dropped", dropped), ("changed", changed)):
        listed = ", ".join(f"{number:,} {what}" for what, number in numbers.items() if number)
        parts += [f"{did} {listed}"] if listed else []
    return "; ".join(parts)


def _split_line(counts: dict[str, Any]) -> str:
    written, rows = counts["rows_written"], counts["rows"]
    share = "" if written == rows else f" of {rows:,}"
    source = f"{counts['documents']:,} documents"
    if "conversations" in counts:
        source = f"{counts['documents']:,} texts of {counts['conversations']:,} conversations"
    parts = [
        f"{written:,}{share} rows from {source}",
        f"{counts['split']:,} documents split",
        f"{counts['packed']:,} pieces packed",
        f"{counts['tokens']:,} tokens",
        f"{counts['padding_share']:.1%} padding",
    ]
    if counts["truncated"]:
        lost = counts["targets_truncated"]
        parts.append(f"{counts['truncated']:,} documents truncated ({lost:,} tokens lost)")
    if counts["rows_duplicate"]:
        parts.append(f"{counts['rows_duplicate']:,} duplicate rows dropped")
    return ", ".join(parts + left_out(counts))


def left_out(counts: dict[str, Any]) -> list[str]:
    """Summarise the documents and rows of a split that have no target, or no space."""
    names = {
        "long": "documents too long",
        "unrendered": "conversations that cannot be rendered",
        "without_target": "documents without a target",
        "rows_without_target": "rows without a target",
    }
    return [f"{counts[key]:,} {what} left out" for key, what in names.items() if counts.get(key)]
