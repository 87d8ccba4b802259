"""Write docs/architectures.md: what the row check says of every text architecture.

    .venv/bin/python docs/sweep.py

A minute or two. Nothing is downloaded: models are tiny and random, see tests/architectures.py.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.alone import outcome  # noqa: E402
from tests.architectures import CAUSAL, MASKED  # noqa: E402

TEXT = """# Supported architectures

`python docs/sweep.py` wrote this page with transformers {version}. It builds a tiny model of every text
architecture that the Auto classes know, with large random weights and windows shorter than a document.

A model is *equal* if a document's logits in a sequence, at every position and beside other documents, are
those that transformers computes for the document alone (to 0.1% of a standard deviation, float32).
Anything else is refused before it is used: every capture, training and evaluation makes the same
comparison on its own model, in its own precision, over sequences of `data.seq_len` tokens
(`kdscale/models/sequence_check.py`).

| models | equal when packed | equal with one document per sequence | refused | not built here | silently different |
| --- | --- | --- | --- | --- | --- |
{counts}

{lists}
Set `data.pack: false` for causal models that need one document per sequence; the other tasks never pack.
Recurrent layers carry their state from one packed document to the next, some decoders count positions
from the start of the sequence, and some encoders read their padding. *Not built here*: the config has no
sizes to cut, the model needs a package for images or sound, or it takes inputs other than text; the
comparison at the start of a run is made for these too.
"""  # noqa: E501
GROUPS = {
    "equal": "equal when packed",
    "equal where rows hold one document": "equal with one document per sequence",
    "refused": "refused",
    "not built": "not built here",
    "silently": "silently different",
}


def group_of(says: str, masked: bool) -> str:
    """Return the group of an outcome. The rows of a masked model hold one document anyway."""
    if says == "equal" and not masked:
        return says
    return next(group for group in list(GROUPS)[1:] if group.startswith(says.split(" by ")[0][:5]))


def main() -> None:
    """Write the page."""
    transformers.logging.set_verbosity_error()
    counts, lists = [], []
    for title, kinds, masked in (("Causal", CAUSAL, False), ("Masked", MASKED, True)):
        found: dict[str, list[str]] = {group: [] for group in GROUPS}
        for kind in kinds:
            found[group_of(outcome(kind, masked), masked)].append(kind)
        sizes = " | ".join(str(len(found[group])) for group in GROUPS)
        counts.append(f"| {title.lower()} ({len(kinds)}) | {sizes} |")
        lists += [
            f"**{title}, {text}** ({len(found[group])}): {', '.join(found[group])}.\n"
            for group, text in GROUPS.items()
            if found[group]
        ]
    text = TEXT.format(
        version=version("transformers"), counts="\n".join(counts), lists="\n".join(lists)
    )
    (ROOT / "docs" / "architectures.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
