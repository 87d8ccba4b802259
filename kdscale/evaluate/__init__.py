"""What the models score, and `results.json`, which says so."""
