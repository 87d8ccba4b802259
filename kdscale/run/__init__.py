"""Runs: the pipeline and its stages, their artifacts, record, lock, stop and status."""
