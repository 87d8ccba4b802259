"""Stored form of a cache: records, shards as Arrow files, packed ids, checked reads."""
