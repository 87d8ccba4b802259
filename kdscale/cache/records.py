"""The JSON records of a cache: plan, commits, manifest.

They are read from storage that anyone may have written to, so each is validated as a whole. Names
of objects are not free: they follow from the unit and the digest, which also keeps a manifest from
naming anything outside its cache.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from kdscale.config import fingerprint
from kdscale.config.base import Config
from kdscale.errors import KdscaleError
from kdscale.store import Store

Digest64 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Digest128 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0)]


def object_key(unit: int, digest: str) -> str:
    """Where a unit's rows and payload lie; the same content has the same key."""
    return f"data/{unit:06d}-{digest[:16]}.arrow"


def index_key(unit: int, digest: str) -> str:
    """Where a unit's row statistics lie."""
    return f"index/{unit:06d}-{digest[:16]}.arrow"


def commit_key(unit: int) -> str:
    """The record that decides which attempt at a unit counts."""
    return f"commits/{unit:06d}.json"


class Block(Config):
    """A part of a data object that is read and verified as one."""

    offset: Count
    length: Count
    rows: Annotated[int, Field(gt=0)]
    digest: Digest64
    """xxh3_64 of its bytes as stored."""


class Commit(Config):
    """One captured unit."""

    unit: Count
    object: str
    digest: Digest128
    """xxh3_128 of the data object."""

    length: Count
    index: str
    index_digest: Digest128
    index_length: Count
    rows: Count
    targets: Count
    blocks: tuple[Block, ...]
    attempt: str
    """Tells one attempt at the unit from another."""

    seconds: float
    """Time it took to build and upload the objects."""

    @model_validator(mode="after")
    def _consistent(self) -> "Commit":
        if self.object != object_key(self.unit, self.digest):
            raise ValueError(f"{self.object!r} is not the object of unit {self.unit}")
        if self.index != index_key(self.unit, self.index_digest):
            raise ValueError(f"{self.index!r} is not the index of unit {self.unit}")
        if sum(block.rows for block in self.blocks) != self.rows:
            raise ValueError(f"the blocks of unit {self.unit} do not hold its {self.rows} rows")
        if any(block.offset + block.length > self.length for block in self.blocks):
            raise ValueError(f"a block of unit {self.unit} ends behind its object")
        return self


class PlanRecord(Config):
    """plan.json: what is captured, in which units. Written once, before the first unit."""

    format: Literal[1]  # identity.FORMAT
    identity: dict[str, Any]
    rows: Count
    rows_per_unit: Annotated[int, Field(gt=0)]
    rows_digest: Digest128
    """xxh3_128 of the captured rows' numbers as little-endian int64."""

    created: str
    """ISO time of the first run."""


class Manifest(Config):
    """A published cache: what it does not name does not exist."""

    format: Literal[1]  # identity.FORMAT
    version: Annotated[int, Field(ge=1)]
    identity: dict[str, Any]
    fingerprint: str
    rows_per_unit: Annotated[int, Field(gt=0)]
    created: str
    units: tuple[Commit, ...]

    @property
    def rows(self) -> int:
        """Rows in all units."""
        return sum(unit.rows for unit in self.units)

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if self.fingerprint != fingerprint(self.identity):
            raise ValueError(f"fingerprint {self.fingerprint!r} is not that of the identity")
        numbers = [unit.unit for unit in self.units]
        if numbers != list(range(len(numbers))):
            raise ValueError("the units are not 0, 1, 2, ... each once")
        return self


Record = TypeVar("Record", bound=Config)


def read_record(kind: type[Record], store: Store, key: str) -> Record:
    """The record at `key`; FileNotFoundError if there is none, KdscaleError if it is invalid."""
    data = store.get(key)
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


def record_bytes(record: Config) -> bytes:
    """The JSON that `read_record` reads."""
    return record.model_dump_json(indent=1).encode()
