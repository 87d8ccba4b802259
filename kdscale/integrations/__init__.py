"""Trainers of other libraries, fed from a cache. Nothing in kdscale imports them."""
