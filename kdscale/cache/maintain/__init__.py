"""Maintenance of caches: inspect, stats, verify, repair, gc, export."""
