"""Table of the positions where student and teacher disagree most: text, label, what each says."""

from collections.abc import Sequence

from kdscale.evaluate.schema import Prediction, Results
from kdscale.report import formatting as units
from kdscale.report.facts import classifies
from kdscale.report.tables import Table


def disagreement_table(results: Results) -> Table | None:
    """Return a row a position, the greatest KL first; None where there are none."""
    found = results.get("disagreements")
    if not found:
        return None
    rows = [
        [
            f"{each['domain']} {each['sequence']:,}:{each['position']:,}",
            each["before"],
            visible(each["label"]),
            units.number(each["kl"], 2),
            said(each["teacher"]),
            said(each["student"]),
        ]
        for each in found
    ]
    text = "Beginning of the document" if classifies(results) else "Text before"
    header = ["Where", text, "Label", "KL", "Teacher says", "Student says"]
    caption = (
        "Positions of the greatest KL from teacher to student, at most one of a sequence: set, "
        "number of the sequence and position in it; what each model finds likeliest"
    )
    return Table(caption, header, rows, name="disagreements", look="words")


def said(predictions: Sequence[Prediction]) -> str:
    """Return `'the' 61%, 'a' 12%`."""
    return ", ".join(
        f"{visible(each['text'])} {units.percent(each['probability'], 0)}" for each in predictions
    )


def visible(text: str) -> str:
    """Quote a short text so that its spaces and line ends show."""
    return repr(text)
