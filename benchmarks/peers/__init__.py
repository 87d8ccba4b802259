"""Readers of the reader benchmark: a module for each loader, and their common parts.

Peers run in their environment, without kdscale, so nothing here imports it except
`kdscale_cache.py` and `synthetic.py`.
"""
