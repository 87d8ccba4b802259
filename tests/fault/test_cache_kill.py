"""kill -9 of a capture at every call of its store and at every change of its folder.

And what continues after it, or beside it.
"""

import os
import sys
from typing import Any

import pytest

from kdscale.cache.rows import CachedRows
from kdscale.store import Store
from tests.fault.captures import (
    MOMENTS,
    Call,
    Moment,
    capture,
    capture_held,
    capture_killed,
    capture_recorded,
)
from tests.fault.conftest import Start
from tests.fault.outcome import (
    SHARDS,
    WRITES,
    assert_only_named,
    assert_undisturbed,
    committed_by,
    planted_in,
    rounded,
)
from tests.fault.processes import Pipe, kill_me, side_by_side
from tests.unit.cache.planted import Planted

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


Case = tuple[Call, Moment]


def boundaries(start: Start, store: Store) -> list[Case]:
    """Return where an undisturbed capture can be cut: before each call, and after writing ones.

    After a read all is as before the next call.
    """
    calls = start(capture_recorded, planted_in(store)).result()
    assert len([call for call in calls if call.writes]) == WRITES
    return [
        (call, moment) for call in calls for moment in (MOMENTS if call.writes else MOMENTS[:1])
    ]


def test_a_capture_killed_at_any_store_call_is_finished_by_the_next(
    store: Store, start: Start, undisturbed: CachedRows
) -> None:
    def check(call: Call, moment: Moment) -> None:
        planted = planted_in(store.child(f"{call.number}-{moment}"))
        start(capture_killed, planted, call.number, moment).await_death()
        start(capture, planted).result()
        assert_undisturbed(planted.store, undisturbed, f"killed {moment} {call}")

    side_by_side(check, boundaries(start, store.child("recorded")))


@pytest.mark.parametrize("end", ["killed", "late"])
def test_a_capture_held_at_any_write_is_overtaken_by_another(
    store: Store, start: Start, undisturbed: CachedRows, end: str
) -> None:
    """The overtaken one has other bytes. It is killed, or it goes on when all is published."""

    def check(call: Call, moment: Moment) -> None:
        planted = planted_in(store.child(f"{call.number}-{moment}"))
        slow = start(capture_held, rounded(planted, 1), call.number, moment)
        assert slow.hear() == "held"
        done = start(capture, planted).result()
        if end == "killed":
            slow.kill()
        else:
            slow.tell("go on")
            assert slow.result() == SHARDS - done
            # It has taken away what it wrote.
            assert_only_named(planted.store)
        expected = committed_by(rounded(planted, 1), undisturbed, SHARDS - done)
        assert_undisturbed(planted.store, expected, f"{end} {moment} {call}")

    cases = boundaries(start, store.child("recorded"))
    side_by_side(check, [case for case in cases if case[0].writes])


# What Python tells its audit hooks before it changes a folder.
CHANGES = {"os.mkdir", "os.rmdir", "os.link", "os.rename", "os.remove"}
WRITING = os.O_WRONLY | os.O_RDWR


def changes_folder(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Whether an audit event is of a change below `folder`."""
    if event == "open":
        path, _, flags = arguments
        return bool(flags & WRITING) and str(path).startswith(folder)
    return event in CHANGES and str(arguments[0]).startswith(folder)


def capture_killed_at_change(pipe: Pipe, planted: Planted, number: int) -> int:
    """Capture until killed before the change number `number` of its folder.

    Returns the changes, if it comes to its end.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if changes_folder(event, arguments, planted.store.url):
            if count == number:
                kill_me()
            count += 1

    sys.addaudithook(hook)
    capture(pipe, planted)
    return count


@pytest.mark.slow
def test_a_capture_killed_at_any_change_of_its_folder_is_finished_by_the_next(
    local: Store, start: Start, undisturbed: CachedRows
) -> None:
    changes = start(capture_killed_at_change, planted_in(local.child("recorded")), -1).result()
    # Each write is at least: temporary file made, filled, named, removed.
    assert changes >= 4 * WRITES
    halves: list[int] = []

    def check(number: int) -> None:
        planted = planted_in(local.child(str(number)))
        start(capture_killed_at_change, planted, number).await_death()
        halves.append(len(planted.store.leftovers()))
        start(capture, planted).result()
        assert_undisturbed(planted.store, undisturbed, f"killed before change {number}")

    side_by_side(check, [(number,) for number in range(changes)])
    assert sum(halves) > WRITES
