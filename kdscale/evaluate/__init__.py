"""Evaluation: scores of models on held-out sequences, and the schema of `results.json`."""
