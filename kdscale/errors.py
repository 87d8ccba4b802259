"""The exceptions that a user is meant to read."""


class KdscaleError(Exception):
    """Something the user can mend: `problem` names what is wrong with the values, `fix` what to do.

    Raised before a worker starts wherever that is possible. The CLI prints it without a traceback.
    """

    def __init__(self, problem: str, fix: str) -> None:
        # Both go to Exception's args, so that the error survives the pickling between Ray
        # processes.
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\nFix: {self.fix}"


class StoreError(OSError):
    """A place for data that could not be used: `what` is wrong with it, `fix` as of a KdscaleError.

    An OSError and no KdscaleError: what can wait for the place, or do without it, tells it from
    data that is wrong. `store.errors.explain` makes a KdscaleError of it where a person reads it.
    passes: whether the same call may succeed later.
    """

    def __init__(
        self, text: str, problem: str = "", what: str = "", fix: str = "", passes: bool = False
    ) -> None:
        super().__init__(text)
        # Not in args: OSError takes two or more for an errno and its text. A pickle has them.
        self.problem, self.what, self.fix, self.passes = problem, what, fix, passes


def last_line(error: BaseException | str) -> str:
    """Return the last line of an error's text, of a traceback what was raised; else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "" if isinstance(error, str) else type(error).__name__
