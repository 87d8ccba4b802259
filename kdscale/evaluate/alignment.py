"""Share of the positions of a student with its own tokenizer that have a target of the teacher's.

It is known from the texts alone: no model runs.
"""

from functools import reduce
from operator import add

import numpy as np

from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import RowTable
from kdscale.distill.alignment.student_data import AlignedPrepared
from kdscale.evaluate.schema import AlignedSet, Alignment

_TRAINING_ROWS = 512
_ROWS_AT_ONCE = 64


def describe_alignment(prepared: AlignedPrepared) -> Alignment:
    """Return both tokenizers, and the shares on training sequences and every evaluation set."""
    train = prepared.teachers.training("cache")
    sets = {"train": _measure(prepared, train, spread(_TRAINING_ROWS, len(train)))}
    for name in prepared.evaluation_sets:
        table = prepared.teachers.split(name)
        sets[name] = _measure(prepared, table, np.arange(len(table)))
    return {
        "teacher_ids": prepared.teachers.vocab_size,
        "student_ids": prepared.vocab_size,
        "classes": prepared.pair.class_count,
        "seq_len": prepared.seq_len,
        "sets": sets,
    }


def _measure(prepared: AlignedPrepared, table: RowTable, chosen: np.ndarray) -> AlignedSet:
    """Return the shares over the sequences of the teacher at `chosen` [N]."""
    parts = [chosen[at : at + _ROWS_AT_ONCE] for at in range(0, len(chosen), _ROWS_AT_ONCE)]
    made = [prepared.aligner.convert(table.take(part)) for part in parts]
    found = reduce(add, (each.coverage for each in made))
    kept = sum(float(each.rows.byte_counts.sum()) for each in made)
    return {
        "positions": int(found.targets.sum()),
        "share": found.share,
        "cut": found.cut_bytes / max(1.0, kept + found.cut_bytes),
        "kinds": found.by_kind(),
    }
