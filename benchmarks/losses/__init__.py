"""The losses that benchmarks/loss.py compares, one module a library."""
