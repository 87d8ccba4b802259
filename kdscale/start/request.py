"""Request of a user for a config to start from."""

from dataclasses import dataclass

from kdscale.config.task import Task


@dataclass(frozen=True)
class Request:
    """Models and data of a run; None where a value is to be found out.

    `teacher` and `student` are folders, URLs or hub names. Without a student it is every second
    layer of the teacher.
    """

    teacher: str
    data: str
    student: str | None = None
    task: Task | None = None
    gpus: int | None = None
    output: str | None = None
    hardware: str | None = None
