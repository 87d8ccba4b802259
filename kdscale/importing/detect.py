"""Layout of a set, from the names of its files and columns."""

from collections.abc import Mapping
from typing import Any, Literal

from kdscale.errors import KdscaleError
from kdscale.importing import distillkit
from kdscale.importing.columns import ROLES, Columns, TokenOf, TokensOf
from kdscale.importing.distillkit import DistillKit
from kdscale.importing.distillkit_values import (
    Compression,
    LegacyCompression,
    parse_compression,
)
from kdscale.importing.files import RECORDS, columns_of, find
from kdscale.importing.megatron import Megatron, find_tars
from kdscale.importing.sequence import Reader

Align = Literal["auto", "next", "own"]


def open_reader(
    source: str,
    *,
    tokens: str | None,
    compression: tuple[str, Mapping[str, Any]] | None,
    columns: Mapping[str, str],
    align: Align,
    token_of: TokenOf,
    tokens_of: TokensOf,
) -> Reader:
    """Return the reader of the set at `source`: a folder, a file or a glob.

    tokens: place of a Megatron run's tokens. compression: the name and content of DistillKit's
    compression config. columns: names of columns by what they are for. Raises KdscaleError where
    there is no set, or none of a known layout.
    """
    tars = find_tars(source)
    if tars:
        if tokens is None:
            raise KdscaleError(
                f"{source} holds {len(tars)} tars of Megatron-LM, in which there are no tokens.",
                "Write the run's samples to Parquet or JSON lines, one a row in the run's order, "
                "in a column `input_ids`, and give them as --tokens PLACE.",
            )
        return Megatron(tars, _records(tokens))
    files = _records(source)
    have = columns_of(files[0])
    for held in (distillkit.COMPRESSED, distillkit.LEGACY, distillkit.PLAIN):
        if set(held) <= set(have) and not columns:
            return _distillkit(source, files, held, compression)
    return Columns(files, _roles(source, have, columns), token_of, tokens_of, align)


def _records(place: str) -> list[tuple[str, str]]:
    files = find(place, RECORDS)
    if not files:
        raise KdscaleError(
            f"{place} holds no file of a set: none that ends in {', '.join(RECORDS)} or .tar and "
            "is not empty.",
            "Give the folder, file or glob of the set.",
        )
    return files


def _distillkit(
    source: str,
    files: list[tuple[str, str]],
    held: tuple[str, ...],
    compression: tuple[str, Mapping[str, Any]] | None,
) -> DistillKit:
    if held == distillkit.PLAIN:
        return DistillKit(files, held)
    if compression is None:
        raise KdscaleError(
            f"{source} is compressed ({', '.join(held)}), and there is no compression config.",
            "Give the compression_config.yaml that was written with it, or the "
            "`logprob_compressor` of its README: --compression FILE.",
        )
    found = parse_compression(dict(compression[1]), compression[0])
    wanted = Compression if held == distillkit.COMPRESSED else LegacyCompression
    if not isinstance(found, wanted):
        raise KdscaleError(
            f"{compression[0]} is that of another layout than {', '.join(held)}.",
            "Give the compression config that the set was captured with.",
        )
    return DistillKit(files, held, found)


def _roles(source: str, have: list[str], named: Mapping[str, str]) -> dict[str, str]:
    """Return the columns by what they are for. KdscaleError where some are missing."""
    for role, column in named.items():
        if role not in ROLES or column not in have:
            raise KdscaleError(
                f"--column {role}={column}: "
                + (f"{source} has no such column." if role in ROLES else "there is no such role."),
                f"Roles are {', '.join(ROLES)}; its columns are {', '.join(have)}.",
            )
    found = dict(named)
    for role, names in ROLES.items():
        known = next((name for name in names if name in have), None)
        if role not in found and known is not None:
            found[role] = known
    pair = {"ids", "values"} <= found.keys()
    if "entries" in named or not pair:
        found.pop("ids", None), found.pop("values", None)
    else:
        found.pop("entries", None)
    if not (pair or "entries" in found) or not {"tokens", "messages"} & found.keys():
        raise KdscaleError(
            f"{source} has no layout that is known here. Its columns: {', '.join(have) or 'none'}.",
            "Known are DistillKit's, Megatron-LM's tars, and columns of tokens with ids and "
            "log-probabilities: name them with --column, such as --column tokens=ids --column "
            "ids=top_tokens --column values=top_logps.",
        )
    return found
