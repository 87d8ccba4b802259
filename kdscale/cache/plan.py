"""Work units, fixed before the run.

A unit is a range of positions in the list of captured rows. It never depends on workers or on the
blocks that Ray happens to form, so a run with other workers continues what an earlier one left.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import xxhash

from kdscale.cache.identity import FORMAT, Identity, check_identity
from kdscale.cache.records import PlanRecord, read_record, record_bytes
from kdscale.errors import KdscaleError
from kdscale.store import Store

PLAN_KEY = "plan.json"


@dataclass(frozen=True)
class Plan:
    """`rows` captured rows in units of `rows_per_unit`; the last unit may be shorter."""

    rows: int
    rows_per_unit: int

    @property
    def units(self) -> list[range]:
        """The positions of each unit, in order."""
        starts = range(0, self.rows, self.rows_per_unit)
        return [range(start, min(start + self.rows_per_unit, self.rows)) for start in starts]


def make_plan(rows: int, rows_per_unit: int) -> Plan:
    """The plan of a capture; KdscaleError where there is nothing to capture."""
    if rows < 1 or rows_per_unit < 1:
        raise KdscaleError(
            f"There is nothing to capture: {rows} rows in units of {rows_per_unit}.",
            "Give a corpus with more text, shorter rows (data.row_length), or a larger unit.",
        )
    return Plan(rows, rows_per_unit)


def agree_plan(store: Store, identity: Identity, plan: Plan, row_numbers: np.ndarray) -> PlanRecord:
    """Fix the plan of this cache, or check that the plan it has is this one.

    row_numbers: [R] integers, the captured rows' places in the data, in the plan's order. Safe to
    call from many workers at once; KdscaleError lists the fields in which an earlier plan differs.
    """
    assert len(row_numbers) == plan.rows
    record = PlanRecord(
        format=FORMAT,
        identity=identity,
        rows=plan.rows,
        rows_per_unit=plan.rows_per_unit,
        rows_digest=xxhash.xxh3_128_hexdigest(row_numbers.astype("<i8").tobytes()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if store.put_if_absent(PLAN_KEY, record_bytes(record)):
        return record
    found = read_record(PlanRecord, store, PLAN_KEY)
    check_identity(*_comparable(found, record))
    return found


def load_plan(store: Store) -> PlanRecord:
    """The plan that a cache has; KdscaleError where it has none."""
    try:
        return read_record(PlanRecord, store, PLAN_KEY)
    except FileNotFoundError:
        raise KdscaleError(
            f"{store} holds no cache: {PLAN_KEY} is missing.",
            "Give the folder of a cache, or make one with `kdscale run CONFIG --only cache`.",
        ) from None


def _comparable(found: PlanRecord, expected: PlanRecord) -> tuple[Identity, Identity]:
    """Both as flat dicts with the same fields, so that a field of only one of them differs too."""
    flat, wanted = (
        {
            **record.identity,
            "rows": record.rows,
            "rows_per_unit": record.rows_per_unit,
            "rows_digest": record.rows_digest,
        }
        for record in (found, expected)
    )
    return flat, dict.fromkeys(flat) | wanted
