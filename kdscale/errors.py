"""The one exception that a user is meant to read."""


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
