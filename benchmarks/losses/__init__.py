"""Losses that benchmarks/loss.py compares."""
