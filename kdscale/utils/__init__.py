"""Helpers that packages share and no package owns."""
