"""Losses: divergences, what a cached target says of them, and head and loss in one."""
