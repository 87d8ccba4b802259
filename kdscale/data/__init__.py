"""The prepare stage: sources -> cleaning -> tokens -> fixed rows with a stable sample_id.

Import from the modules: the Ray tasks use `documents`, which loads no torch, so that a worker
starts in a fraction of a second.
"""
