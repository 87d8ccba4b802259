"""The JSON records of a cache: plans, commits, manifests.

They are read from storage that anyone may have written to, so each is validated as a whole. Names
of objects are not free: they follow from the shard and the digest, which also keeps a record from
naming anything outside its cache.
"""

import json
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeVar

import xxhash
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from kdscale.cache.spec import FORMAT
from kdscale.config import fingerprint
from kdscale.config.base import Config
from kdscale.errors import KdscaleError
from kdscale.store import Store

Digest64 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Digest128 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]

_CHECKSUM = "checksum"


def commit_key(shard: int) -> str:
    """Return the key of the record that decides which attempt at a shard counts."""
    return f"commits/{shard:06d}.json"


class OtherFormatError(KdscaleError):
    """A cache of another format version, which is not damaged."""


class ObjectReference(Config):
    """An object that is named by its content."""

    digest: Digest128
    """xxh3_128 of its bytes."""

    length: Count


class Chunk(Config):
    """A part of a data object that is read and verified as one."""

    offset: Count
    length: Count
    rows: Positive
    digest: Digest64
    """xxh3_64 of its bytes as stored."""


class Record(Config):
    """A record that is stored as JSON, with a checksum of all its other fields."""

    @model_validator(mode="wrap")
    @classmethod
    def _intact(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the checksum: a flipped bit may leave a number a number.

        A record without a checksum was never stored.
        """
        if not isinstance(data, dict) or _CHECKSUM not in data:
            return handler(data)
        fields = {name: value for name, value in data.items() if name != _CHECKSUM}
        record = handler(fields)
        if (found := _checksum(fields)) != data[_CHECKSUM]:
            raise ValueError(f"it is damaged: its checksum is {found}, not {data[_CHECKSUM]}")
        return record


class Shard(Config):
    """The two objects of a captured shard."""

    shard: Count
    digest: Digest128
    """xxh3_128 of the data object, which holds rows and payload."""

    length: Count
    index_digest: Digest128
    """xxh3_128 of the index object, which holds row statistics and the table of chunks."""

    index_length: Count
    rows: Positive
    targets: Count

    @property
    def object(self) -> str:
        """Return where the data object lies; the same content has the same key."""
        return f"data/{self.shard:06d}-{self.digest[:16]}.arrow"

    @property
    def index(self) -> str:
        """Return where the index object lies."""
        return f"index/{self.shard:06d}-{self.index_digest[:16]}.arrow"


class Commit(Shard, Record):
    """commits/<shard>.json: the attempt at a shard that counts."""

    attempt: str
    """Tells one attempt at the shard from another."""

    seconds: float
    """Time it took to build and upload the objects."""

    def as_shard(self) -> Shard:
        """Without what only this attempt knows."""
        return Shard(**self.model_dump(exclude={"attempt", "seconds"}))


class Generation(Config):
    """Rows that were planned together: those of the first capture, or of one that was appended."""

    first_shard: Count
    """Shards count on from generation to generation, and so do rows."""

    first_row: Count
    rows: Positive
    sequences_per_shard: Positive
    """The last shard may be shorter; so may the last chunk of every shard."""

    sequences_per_chunk: Positive
    data: str
    """Fingerprint of the data that the rows are from."""

    request: Digest128
    """Selection of rows of that data (`selection_hash`)."""

    prior: ObjectReference | None
    """The prior that the payload is packed under; None where it is stored as it is."""

    @cached_property
    def shards(self) -> list[range]:
        """The rows of each shard, counted from the generation's first."""
        starts = range(0, self.rows, self.sequences_per_shard)
        return [range(start, min(start + self.sequences_per_shard, self.rows)) for start in starts]

    @property
    def prior_key(self) -> str | None:
        """Return where the prior lies."""
        return None if self.prior is None else f"prior/{self.prior.digest[:16]}.arrow"


class PlanRecord(Record):
    """plans/<number>.json: what one generation captures. Written before its first shard."""

    format: Literal[5]  # spec.FORMAT
    identity: dict[str, Any]
    generation: Generation
    created: str
    """ISO time."""


class ManifestRecord(Record):
    """manifests/<version>.json: a published cache. What it does not name does not exist."""

    format: Literal[5]  # spec.FORMAT
    version: Positive
    identity: dict[str, Any]
    fingerprint: str
    created: str
    """ISO time of the last generation's plan."""

    generations: tuple[Generation, ...]
    shards: ObjectReference
    """The table of all shards, `shards_key`."""

    @property
    def shards_key(self) -> str:
        """Return where the table of shards lies."""
        return f"manifests/shards-{self.shards.digest[:16]}.arrow"

    @model_validator(mode="after")
    def _consistent(self) -> "ManifestRecord":
        if self.fingerprint != fingerprint(self.identity):
            raise ValueError(f"fingerprint {self.fingerprint!r} is not that of the identity")
        shards = rows = 0
        for generation in self.generations:
            if (generation.first_shard, generation.first_row) != (shards, rows):
                raise ValueError("the generations do not follow on each other")
            shards, rows = shards + len(generation.shards), rows + generation.rows
        if not rows:
            raise ValueError("there is no generation")
        return self


Kind = TypeVar("Kind", bound=Record)


def read_record(kind: type[Kind], store: Store, key: str) -> Kind:
    """Return the record at `key`.

    FileNotFoundError if there is none, KdscaleError if it is invalid.
    """
    data = store.get(key)
    _check_format(data, store, key)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        causes = "\n".join(
            f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise KdscaleError(
            f"{store}/{key} is not a valid record of a cache:\n{causes}",
            "Use the kdscale version that wrote it; if it was damaged, capture the cache again.",
        ) from error


def _check_format(data: bytes, store: Store, key: str) -> None:
    """Raise OtherFormatError for another cache format; other damage is for pydantic to name."""
    try:
        found = json.loads(data).get("format", FORMAT)
    except (ValueError, AttributeError):
        return
    if found != FORMAT and isinstance(found, int):
        raise OtherFormatError(
            f"{store}/{key} was written by a kdscale of cache format {found}; "
            f"this kdscale reads and writes format {FORMAT}.",
            f"Read the cache with a kdscale of format {found}, or capture it again to another "
            "output.",
        )


def record_bytes(record: Record) -> bytes:
    """Return the JSON that `read_record` reads."""
    fields = record.model_dump(mode="json")
    return json.dumps(fields | {_CHECKSUM: _checksum(fields)}, indent=1).encode()


def _checksum(fields: dict[str, Any]) -> str:
    """xxh3_64 of the fields, whatever the layout of their JSON."""
    return xxhash.xxh3_64_hexdigest(json.dumps(fields, sort_keys=True).encode())
