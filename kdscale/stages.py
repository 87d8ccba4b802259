"""The names of a run's stages, in order. A module of their own, so that `--help` needs no torch."""

STAGES: tuple[str, ...] = ("prepare", "teacher", "cache", "distill", "evaluate", "report")
