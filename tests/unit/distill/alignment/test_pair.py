"""Classes of two tokenizers, against their definition id by id."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from kdscale.data.chat.template import ChatTemplate
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.distill.alignment import TokenizerPair
from kdscale.store import open_store
from tests.small_tokenizers import KINDS, info_of, small_tokenizer, small_tokens


def first_of(tokens: TokenBytes, text: bytes) -> int:
    return int(tokens.encode([text])[0][0])


def named_classes(teacher: TokenBytes, student: TokenBytes) -> tuple[list[int], list[int]]:
    """Return the classes of all ids of text, by definition, as ids of the teacher; -1 of others."""
    g = [
        -1 if student.is_special[s] else first_of(teacher, student.of_id(s))
        for s in range(student.vocab_size)
    ]
    theirs = []
    for i in range(teacher.vocab_size):
        if teacher.is_special[i]:
            theirs.append(-1)
            continue
        f = first_of(student, teacher.of_id(i))
        is_whole = len(student.of_id(f)) == len(teacher.of_id(i))
        theirs.append(i if i in g and is_whole else g[f])
    return theirs, g


@pytest.mark.parametrize("student_kind", ["byte-level", "gemma", "unigram"])
@pytest.mark.parametrize("teacher_kind", KINDS)
def test_classes_are_those_of_the_definition(teacher_kind: str, student_kind: str) -> None:
    teacher, student = small_tokens(teacher_kind), small_tokens(student_kind, 450)
    pair = TokenizerPair.build(teacher, student)
    theirs, mine = named_classes(teacher, student)
    # Two partitions are the same where each class of one is one class of the other.
    names = [*theirs, *mine]
    numbers = [*pair.teacher_classes.tolist(), *pair.student_classes.tolist()]
    found = {(name, number) for name, number in zip(names, numbers, strict=True) if name >= 0}
    assert len(found) == len({name for name, _ in found}) == len({number for _, number in found})
    assert sorted(set(pair.student_classes.tolist())) == list(range(pair.class_count))
    assert pair.teacher_classes.dtype == pair.student_classes.dtype == np.int32
    assert pair.teacher_classes.max() < pair.class_count


def test_the_same_tokenizer_gives_every_id_its_own_class() -> None:
    tokens = small_tokens("byte-level")
    pair = TokenizerPair.build(tokens, tokens)
    assert pair.class_count == tokens.vocab_size
    assert pair.teacher_classes.tolist() == list(range(tokens.vocab_size))
    assert pair.student_classes.tolist() == list(range(tokens.vocab_size))
    assert pair.counterparts[:2].tolist() == [0, 1]


def test_both_sides_of_a_class_begin_with_the_same_bytes() -> None:
    teacher, student = small_tokens("byte-level"), small_tokens("gemma", 450)
    pair = TokenizerPair.build(teacher, student)
    for number in range(pair.class_count):
        texts = [student.of_id(s) for s in np.flatnonzero(pair.student_classes == number).tolist()]
        shortest = min(map(len, texts))
        assert len({text[:1] for text in texts}) == 1, (number, shortest)
        for i in np.flatnonzero(pair.teacher_classes == number).tolist():
            assert teacher.of_id(i)[:1] == texts[0][:1]


def with_specials(names: list[str], size: int = 450) -> tuple[Tokenizer, dict[str, int]]:
    tokenizer = Tokenizer.from_str(small_tokenizer("byte-level", size).to_str())
    tokenizer.add_special_tokens(names)
    ids = tokenizer.get_vocab()
    return tokenizer, {name: ids[name] for name in ["<s>", "</s>", *names]}


def test_special_tokens_meet_by_role_and_then_by_name() -> None:
    old, theirs = with_specials(["<turn>", "<end>", "<pad>", "<tool>"])
    new, mine = with_specials(["<pad>", "<turn>", "<over>", "<end>"], 500)
    teacher_info = TokenizerInfo(454, "", theirs["<turn>"], theirs["<end>"], theirs["<pad>"])
    student_info = TokenizerInfo(504, "", mine["<s>"], mine["<over>"], mine["<pad>"])
    student = TokenBytes.of(new.to_str().encode(), student_info)
    teacher = TokenBytes.of(old.to_str().encode(), teacher_info)
    pair = TokenizerPair.build(teacher, student)
    found = {name: int(pair.counterparts[number]) for name, number in theirs.items()}
    assert found == {
        "<s>": mine["<s>"],
        "</s>": mine["</s>"],
        "<turn>": mine["<s>"],  # where a document starts
        "<end>": mine["<over>"],
        "<pad>": mine["<pad>"],
        "<tool>": -1,
    }
    assert pair.start == (theirs["<turn>"], mine["<s>"])
    for name, number in found.items():
        same = pair.teacher_classes[theirs[name]] == pair.student_classes[number]
        assert same if number >= 0 else pair.teacher_classes[theirs[name]] == -1
    # The student's own have one class, which the teacher says nothing of.
    own = pair.student_classes[[mine["<turn>"], mine["<end>"]]]
    assert own[0] == own[1]
    assert own[0] not in pair.teacher_classes

    chat = ChatTemplate("", {}, ())
    talking = TokenBytes.of(old.to_str().encode(), replace(teacher_info, chat=chat))
    named = TokenizerPair.build(talking, student)
    assert named.counterparts[theirs["<turn>"]] == mine["<turn>"]
    assert named.counterparts[theirs["<end>"]] == mine["<end>"]
    assert named.start == (theirs["<turn>"], mine["<turn>"])
    assert named.digest != pair.digest


def test_one_token_for_start_and_end_of_the_teacher_becomes_two_of_the_student() -> None:
    tokenizer = small_tokenizer("byte-level")
    info = replace(info_of(tokenizer), start_id=1, end_id=1)
    teacher = TokenBytes.of(tokenizer.to_str().encode(), info)
    pair = TokenizerPair.build(teacher, small_tokens("gemma", 450))
    student = pair.student.info
    assert pair.start == (1, student.start_id)
    assert pair.counterparts[1] == student.end_id


def test_a_pair_is_stored_below_its_digest(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    teacher, student = small_tokens("byte-level"), small_tokens("gemma", 450)
    assert TokenizerPair.load(store, teacher, student) is None
    built = TokenizerPair.get(store, teacher, student)
    key = built.save(store)
    assert store.list() == [key]
    assert built.digest in key
    loaded = TokenizerPair.load(store, teacher, student)
    assert loaded is not None
    assert loaded.class_count == built.class_count
    assert (loaded.teacher_classes == built.teacher_classes).all()
    assert (loaded.student_classes == built.student_classes).all()
    assert TokenizerPair.load(store, student, teacher) is None
