"""What a run will need, looked at before anything of it starts.

check.py         all of it, in order
view.py          what is made, from where it is seen, what is known
findings.py      notes, and what was checked
locate.py        models that the config names, without their weights
text.py          corpora and cleaning
tokenizer.py     the teacher's tokenizer, or what is known of one that is to be trained
models.py        teacher and student, built without weights; probe.py: small copies that compute
targets.py       codec, loss and curriculum
caches.py        caches of other runs, field by field; vocabularies.py: two tokenizers
evaluation.py    text that is written, other models
options.py       fields that are ignored
reading.py       rows that nobody reads; tokens.py: how many rows there are
"""

from kdscale.preflight.check import preflight
from kdscale.preflight.context import DEFAULTS, Findings, PreflightOptions

__all__ = ["DEFAULTS", "Findings", "PreflightOptions", "preflight"]
