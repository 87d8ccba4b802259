"""What outlives a worker group: how many there were, and the error that no restart can mend.

Kept by an actor beside the driver, whose process starts in a third of the time without torch.
"""


class Attempts:
    """Of one stage."""

    def __init__(self) -> None:
        self._groups: list[str] = []
        self._error: Exception | None = None

    def start(self, group: str) -> tuple[int, Exception | None]:
        """(number of groups before `group`, the final error if there was one); asked by each of
        its ranks."""
        if group not in self._groups:
            self._groups.append(group)
        return self._groups.index(group), self._error

    def give_up(self, error: Exception) -> None:
        """No later group is to try again."""
        self._error = self._error or error
