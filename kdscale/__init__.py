"""Distil large Transformers into small ones at cluster scale, from a cache of teacher logits."""

__version__ = "0.1.0"
