"""The lines of a run's charts, from the metrics that its stages logged."""

from kdscale.report import facts
from kdscale.report.charts import Series, smooth
from kdscale.report.load import Run


def losses(run: Run) -> list[Series]:
    """Student and baseline, training and validation, and the teacher as a level to aim at."""
    series = []
    for stage, role in (("distill", "student"), ("baseline", "baseline")):
        # Where it is logged: the student's own `train/loss` mixes in the distillation loss.
        key = "train/ce_loss" if run.series(stage, "train/ce_loss") else "train/loss"
        series.append(Series(f"{role}, train", role, smooth(run.series(stage, key)), "faint"))
        validation = run.series(stage, "validation/loss")
        series.append(Series(f"{role}, validation", role, validation, label=role))
    teacher = facts.score(run.results, "teacher", "validation")
    if teacher:
        level = [(0.0, teacher["loss"])]
        series.append(Series("teacher, evaluated", "teacher", level, "level", label="teacher"))
    return series


def teacher_losses(run: Run) -> list[Series]:
    """The teacher's own training."""
    return [
        Series("train", "teacher", smooth(run.series("teacher", "train/loss")), "faint"),
        Series("validation", "teacher", run.series("teacher", "validation/loss")),
    ]


def divergence(run: Run) -> list[Series]:
    """The student's KL to its teacher in training."""
    return [Series("train", "student", smooth(run.series("distill", "train/kl")), "plain")]


def shares_of_rows(run: Run) -> list[Series]:
    """What a curriculum lets the student draw from, and what the student has met."""
    return [
        Series("in the pool", "student", run.series("distill", "curriculum/competence"), "plain"),
        Series("seen", "second", run.series("distill", "curriculum/unique_seen_share"), "plain"),
    ]


def difficulty(run: Run) -> list[Series]:
    """The mean difficulty of the rows in a batch."""
    points = smooth(run.series("distill", "curriculum/mean_difficulty"))
    return [Series("mean of a batch", "student", points, "plain")]
