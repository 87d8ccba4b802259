"""Several processes that all believe the whole plan to be theirs, at once."""

import pytest

from kdscale.cache.rows import CachedRows
from kdscale.store import Store
from tests.fault.captures import capture_together
from tests.fault.conftest import Start
from tests.fault.outcome import SHARDS, assert_each_of_one, planted_in, rounded
from tests.fault.processes import meeting

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

WORKERS = 5
ROUNDS = 3


@pytest.mark.parametrize("distinct", [1, 2, WORKERS], ids=["equal", "two-kinds", "all-different"])
def test_of_simultaneous_duplicates_one_commits_and_the_others_leave_nothing(
    store: Store, start: Start, undisturbed: CachedRows, distinct: int
) -> None:
    """Two kinds: attempts with equal bytes, hence equal keys, of which all or none may lose."""
    for number in range(ROUNDS):
        planted = planted_in(store.child(str(number)))
        kinds = [rounded(planted, kind) for kind in range(distinct)]
        together = meeting(WORKERS)
        workers = [start(capture_together, kinds[n % distinct], together) for n in range(WORKERS)]
        assert sum(worker.result() for worker in workers) == SHARDS
        assert_each_of_one(planted.store, kinds, undisturbed, f"round {number}")
