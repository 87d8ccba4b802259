"""Start: the config of a run for a teacher, a student and data that exist.

request.py      what the user gives
data_kind.py    kind and fields of the data, from the first records
models.py       task, tokenizers and lengths of the models
draft.py        the config before its sizes are chosen
sizes.py        rows, steps, micro-batches and sharding, by the figures of `kdscale plan`
write.py        the whole: a short YAML text, checked as a run is before it starts
"""

from kdscale.start.request import Request
from kdscale.start.write import Started, start_config

__all__ = ["Request", "Started", "start_config"]
