"""A teacher that is sharded inside of groups of ranks and replicated between them.

Two groups of two gloo ranks, as two nodes are: the same bytes as one whole teacher, half of the
weights on each rank, no collective of a forward between groups.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from kdscale.cache.read.reader import CacheReader
from kdscale.config.training import ZeroConfig
from kdscale.distill.targets import OnlineTeacher
from kdscale.distributed.groups import RankGroup, make_group
from kdscale.distributed.rank import current_rank
from kdscale.errors import KdscaleError
from kdscale.models.forward import RowTensors
from kdscale.models.hf_folder import ModelReference
from kdscale.models.release import release
from kdscale.models.sequence_check import SequenceSpec
from kdscale.models.sharded import load_teacher, parameters_held
from tests.architectures import tiny_model
from tests.distributed.test_release import LEFT, elements
from tests.ranks import run_ranks
from tests.unit.teacher.test_capture import Subject, differing_bytes, make_subject

# Plain, and a mixture whose experts are one tensor a layer, with windows.
KINDS = ("gpt2", "qwen3_moe")
RANKS, SIZE, LENGTH = 4, 2, 64
# Five shards of six sequences, two forwards each: in the second round one group has none.
COUNT = 27


def make_model(kind: str, vocab_size: int) -> PreTrainedModel:
    return tiny_model(kind, vocab_size=vocab_size + 3)


def subject(folder: Path, kind: str, stage: int) -> Subject:
    model = partial(make_model, kind)
    return make_subject(
        folder, model, length=LENGTH, count=COUNT, stage=stage, group=SIZE if stage else "auto"
    )


def group_of(choice: Any) -> RankGroup:
    return make_group(choice, current_rank(), lambda: 0, 60.0)


@contextmanager
def groups_used() -> Iterator[set[tuple[int, ...]]]:
    """Yield the ranks of every group that torch or DeepSpeed calls a collective of inside."""
    from deepspeed.comm import comm

    found: set[tuple[int, ...]] = set()

    def noted(function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            found.add(tuple(dist.get_process_group_ranks(more.get("group") or dist.group.WORLD)))
            return function(*arguments, **more)

        return call

    names = ("all_gather_into_tensor", "all_gather", "broadcast", "all_reduce", "barrier")
    with ExitStack() as patched:
        for place in (dist, type(comm.cdb)):
            calls = {name: noted(getattr(place, name)) for name in names}
            patched.enter_context(mock.patch.multiple(place, **calls))
        yield found


def rows(count: int) -> RowTensors:
    ids = torch.arange(count * LENGTH).view(count, LENGTH) % 96
    mask = torch.ones_like(ids, dtype=torch.bool)
    return RowTensors(ids, torch.ones_like(ids), mask, torch.roll(ids, -1, dims=1))


def online(folder: str, is_sharded: bool) -> tuple[list[list[float]], set[tuple[int, ...]]]:
    """Return the teacher's logits, and the groups of its forwards, of which groups run some more.

    More than two, as the order of modules is learned in the first two.
    """
    group = group_of(SIZE) if is_sharded else None
    spec = SequenceSpec(96, 96, LENGTH, packs=False, micro_batch_size=1)
    reference = ModelReference("f", folder, None, "d", 0)
    zero = ZeroConfig(stage=3 if is_sharded else 0)
    teacher = OnlineTeacher(reference, current_rank(), zero, spec, ("hidden",), group=group)
    found = []
    with groups_used() if is_sharded else nullcontext(set()) as used:
        for _ in range(1 + 3 * (current_rank().rank // SIZE)):
            targets = teacher.targets(rows(1), 1.0)
            found.append(targets.at(slice(0, 4), lambda: torch.empty(0)).logits.tolist())
    teacher.close()
    return found[-1], used


def placed(folder: str) -> tuple[int, int, int, int]:
    """Return (parameters held, of the whole model, elements with the teacher, after it)."""
    start, worker = elements(), current_rank()
    model = load_teacher(folder, worker, ZeroConfig(stage=3), group=group_of(SIZE))
    held, total = parameters_held(model)
    most = elements() - start
    release(model)
    return held, total, most, elements() - start


def refused(nodes: list[int], choice: Any) -> tuple[str, range]:
    """Return the error of a choice where ranks are on these nodes, or the group."""
    worker = current_rank()
    with mock.patch.dict(os.environ, NODE_RANK=str(nodes[worker.rank])):
        try:
            return "", group_of(choice).ranks
        except KdscaleError as error:
            return f"{error.problem} {error.fix}", range(0)


CHOICES: list[tuple[list[int], Any]] = [
    ([0, 0, 1, 1], "node"),
    ([0, 0, 1, 1], "all"),
    ([0, 0, 1, 1], "auto"),  # on CPUs, which have no link of their own
    ([0, 0, 0, 0], "node"),
    ([0, 0, 0, 1], "node"),
    ([0, 1, 0, 1], "node"),
    ([0, 1, 2, 3], "node"),
    ([0, 0, 1, 1], 3),
]


def all_of_it(jobs: list[Any], folder: str) -> tuple[Any, ...]:
    """One group of ranks: starting processes is the slow part."""
    before = placed(folder)
    for job in jobs:
        job.run()
    return before, online(folder, True), [refused(*each) for each in CHOICES]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    return {kind: subject(tmp_path_factory.mktemp(kind), kind, stage=3) for kind in KINDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("online")
    tiny_model("qwen3_moe", vocab_size=96).save_pretrained(where)
    return str(where)


@pytest.fixture(scope="module")
def found(subjects: dict[str, Subject], folder: str) -> list[Any]:
    return run_ranks(all_of_it, RANKS, [each.job for each in subjects.values()], folder)


@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_ranks_fill_the_cache_that_one_whole_teacher_fills(
    found: list[Any], subjects: dict[str, Subject], kind: str, tmp_path: Path
) -> None:
    alone = subject(tmp_path, kind, stage=0)
    alone.run()
    every = np.arange(COUNT)
    ours, theirs = (CacheReader(each.job.cache).read(every) for each in (subjects[kind], alone))
    np.testing.assert_array_equal(ours.payload, theirs.payload)
    np.testing.assert_array_equal(ours.nll, theirs.nll)
    assert differing_bytes(subjects[kind]) == 0


@pytest.mark.dist
def test_a_rank_holds_its_share_of_the_group_and_nothing_when_released(found: list[Any]) -> None:
    for (held, total, most, left), _, _ in found:
        assert total // SIZE <= held <= total // SIZE + 1_000  # padded, parameter by parameter
        assert most >= held
        assert left < LEFT


@pytest.mark.dist
def test_an_online_teacher_is_gathered_in_its_group_and_groups_need_not_keep_in_step(
    found: list[Any], folder: str
) -> None:
    whole, _ = online(folder, False)
    for rank, (_, (logits, used), _) in enumerate(found):
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(whole))
        first = rank // SIZE * SIZE
        assert used == {tuple(range(first, first + SIZE))}


@pytest.mark.dist
def test_ranks_that_make_no_equal_groups_are_refused(found: list[Any]) -> None:
    for rank, (_, _, answers) in enumerate(found):
        own = range(rank // SIZE * SIZE, rank // SIZE * SIZE + SIZE)
        whole = range(RANKS)
        assert [ranks for _, ranks in answers[:4]] == [own, whole, whole, whole]
        errors = [text for text, _ in answers]
        assert errors[:4] == [""] * 4
        assert "the nodes have [3, 1] workers" in errors[4]
        assert "the nodes have [2, 2] workers" in errors[5]
        assert "the nodes have [1, 1, 1, 1] workers" in errors[6]
        assert "teacher_group is 3, and the 4 workers" in errors[7]
