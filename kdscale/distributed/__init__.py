"""Ranks, collectives, device and dtype; no Ray."""
