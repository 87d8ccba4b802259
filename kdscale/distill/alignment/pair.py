"""Classes of the ids of two tokenizers that both can tell apart.

f(i) is the student's first token of the bytes of a teacher's id i, g(s) the teacher's first token
of the bytes of a student's id s, both as continuations of a text. A student's id s has the class
g(s). A teacher's id i has the class i, where some s has it and f(i) is all of i's bytes; else that
of f(i), as all that the student can say of i at this place is how it begins. Classes are a
partition of either vocabulary, so that a score over them is proper.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdscale.data.token_bytes import TokenBytes
from kdscale.store import Store

# Raised when the same tokenizers would give other classes.
_VERSION = 1


@dataclass(frozen=True)
class TokenizerPair:
    """A teacher's and a student's tokenizer, and the classes of their ids."""

    teacher: TokenBytes
    student: TokenBytes
    teacher_classes: np.ndarray
    """[V_T] int32; -1: a special token that the student has nothing for."""

    student_classes: np.ndarray
    """[V_S] int32. Special tokens that the teacher has nothing for share one class."""

    class_count: int

    @classmethod
    def build(cls, teacher: TokenBytes, student: TokenBytes) -> "TokenizerPair":
        """Sort all ids into classes; the same tokenizer gives every id its own.

        Two tokenizers have classes in common in any case: both have a token for every byte.
        """
        if teacher.digest == student.digest:
            theirs = np.arange(teacher.vocab_size)
            return cls._numbered(teacher, student, theirs, theirs.copy())
        theirs, mine = _text_classes(teacher, student)
        special = _counterparts(teacher, student)
        for number in np.flatnonzero(special >= 0):
            known = mine[special[number]]
            mine[special[number]] = theirs[number] = number if known < 0 else known
        return cls._numbered(teacher, student, theirs, mine)

    @classmethod
    def _numbered(
        cls, teacher: TokenBytes, student: TokenBytes, theirs: np.ndarray, mine: np.ndarray
    ) -> "TokenizerPair":
        """Return the pair with the classes, so far ids of the teacher, numbered from 0."""
        names, numbers = np.unique(
            np.where(mine < 0, teacher.vocab_size, mine), return_inverse=True
        )
        places = np.searchsorted(names, theirs)
        is_known = names[np.minimum(places, len(names) - 1)] == theirs
        return cls(
            teacher,
            student,
            np.where(is_known, places, -1).astype(np.int32),
            numbers.astype(np.int32),
            len(names),
        )

    @cached_property
    def counterparts(self) -> np.ndarray:
        """The student's id of each special token of the teacher, [V_T] int32; -1: none.

        Of text it is -1, too.
        """
        return _counterparts(self.teacher, self.student)

    @cached_property
    def start(self) -> tuple[int, int]:
        """The teacher's token that starts a document, and the student's that takes its place.

        It may be another one than elsewhere: of a teacher that has one token for start and end.
        """
        first = self.teacher.info.start_id
        is_named = self.teacher.info.chat is not None and self.counterparts[first] >= 0
        return first, int(self.counterparts[first]) if is_named else self.student.info.start_id

    @property
    def digest(self) -> str:
        """Name of the pair: of both tokenizers, their special tokens and the construction."""
        return _digest(self.teacher, self.student)

    def save(self, store: Store) -> str:
        """Write the classes below their digest, and return the key."""
        file = io.BytesIO()
        np.savez_compressed(file, teacher=self.teacher_classes, student=self.student_classes)
        key = _key(self.teacher, self.student)
        store.put_if_absent(key, file.getvalue())
        return key

    @classmethod
    def load(cls, store: Store, teacher: TokenBytes, student: TokenBytes) -> "TokenizerPair | None":
        """Return the pair of these tokenizers that `store` has; None without one."""
        try:
            file = io.BytesIO(store.get(_key(teacher, student)))
        except FileNotFoundError:
            return None
        with np.load(file, allow_pickle=False) as found:
            theirs, mine = found["teacher"], found["student"]
        return cls(teacher, student, theirs, mine, int(mine.max()) + 1)

    @classmethod
    def get(cls, store: Store, teacher: TokenBytes, student: TokenBytes) -> "TokenizerPair":
        """Return the pair of these tokenizers, from `store` or built and written there."""
        found = cls.load(store, teacher, student)
        if found is None:
            found = cls.build(teacher, student)
            found.save(store)
        return found


def _text_classes(teacher: TokenBytes, student: TokenBytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the class, an id of the teacher, of every id of teacher and student; -1 of no text."""
    first_of_teacher, first_of_student = (
        _first_tokens(teacher, student),
        _first_tokens(student, teacher),
    )
    is_class = np.zeros(teacher.vocab_size, bool)
    is_class[first_of_student[first_of_student >= 0]] = True
    is_whole = student.lengths[first_of_teacher] == teacher.lengths
    own = np.arange(teacher.vocab_size)
    theirs = np.where(is_class & is_whole, own, first_of_student[first_of_teacher])
    return np.where(first_of_teacher < 0, -1, theirs), first_of_student


def _first_tokens(tokens: TokenBytes, other: TokenBytes) -> np.ndarray:
    """Return the first token that `other` makes of each id of `tokens`, [V] int64; -1 of none."""
    numbers = np.flatnonzero(~tokens.is_special)
    ids, counts = other.encode([tokens.of_id(number) for number in numbers.tolist()])
    found = np.full(tokens.vocab_size, -1, np.int64)
    found[numbers] = ids[np.cumsum(counts) - counts]
    return found


def _counterparts(teacher: TokenBytes, student: TokenBytes) -> np.ndarray:
    """Return the student's special token for each of the teacher's, [V_T] int32; -1: none.

    By role (end, start, padding, mask), else by name; in conversations, whose templates write names
    between the turns, by name first.
    """
    theirs, mine = teacher.info, student.info
    roles = [
        (theirs.end_id, mine.end_id),
        (theirs.start_id, mine.start_id),
        (theirs.pad_id, mine.pad_id),
        (theirs.mask_id, mine.mask_id),
    ]
    by_role = [(old, new) for old, new in roles if old is not None and new is not None]
    by_name = [
        (old, student.names[name]) for name, old in teacher.names.items() if name in student.names
    ]
    found = np.full(teacher.vocab_size, -1, np.int32)
    for old, new in by_name + by_role if theirs.chat is not None else by_role + by_name:
        if found[old] < 0:
            found[old] = new
    return found


def _digest(teacher: TokenBytes, student: TokenBytes) -> str:
    sides = [
        (side.digest, info.start_id, info.end_id, info.pad_id, info.mask_id, info.chat is not None)
        for side in (teacher, student)
        for info in (side.info,)
    ]
    return hashlib.sha256(json.dumps([_VERSION, *sides]).encode()).hexdigest()[:32]


def _key(teacher: TokenBytes, student: TokenBytes) -> str:
    return f"tokenizer-pairs/{_digest(teacher, student)}.npz"
