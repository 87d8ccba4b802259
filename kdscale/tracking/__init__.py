"""Metrics of runs: JSON lines, W&B, Prometheus, and the table of all metrics."""
