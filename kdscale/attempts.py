"""What outlives a worker group: how often it was started, and the error that no restart can mend.

Kept by an actor beside the driver, whose process starts in a third of the time without torch.
"""

from collections import Counter


class Attempts:
    """Of one stage."""

    def __init__(self) -> None:
        self._starts: Counter[int] = Counter()
        self._error: Exception | None = None

    def start(self, rank: int) -> tuple[int, Exception | None]:
        """(starts of this rank before, the final error if there was one)."""
        self._starts[rank] += 1
        return self._starts[rank] - 1, self._error

    def give_up(self, error: Exception) -> None:
        """No later start is to try again."""
        self._error = self._error or error
