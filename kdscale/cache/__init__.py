"""The logit cache: what a teacher knows of a corpus, in a few bytes a token, in object storage.

`codecs` turn a distribution into bytes and back; `container` lays out a unit of rows; `plan`,
`writer` and `manifest` make a cache complete exactly once; `reader` gives rows in any order, and
`mixing` those of several caches. `inspect`, `stats`, `verify`, `repair`, `collect` and `export` are
for whoever looks after what is stored.
"""
