"""Preflight: checks of everything that a run will need, before anything of it starts.

check.py           all checks in order; targets, and what evaluation generates and compares
context.py         the stages to make, options, facts known so far, notes
data.py            corpora, cleaning, tokenizer and chat template
own_tokenizer.py   the tokenizer of a student that brings its own, beside the teacher's
models.py          teacher and student, built without weights; small_model.py: a copy that computes
locate.py          where the models of the config are
caches.py          caches and bases of other runs, field by field
row_counts.py      number of sequences, and those that nothing reads
ignored_fields.py  fields without effect
"""

from kdscale.preflight.check import preflight
from kdscale.preflight.context import DEFAULTS, Findings, PreflightOptions

__all__ = ["DEFAULTS", "Findings", "PreflightOptions", "preflight"]
