"""The arms of the reader benchmark: a module for each loader, and what they have in common.

Peers run in an environment of their own, without kdscale, so nothing here imports it except
`kdscale_cache.py` and `synthetic.py`.
"""
