"""The logit cache: what a teacher knows of a corpus, in a few bytes a token, in object storage.

`codecs` turn a distribution into bytes and back. `format` lays shards of rows out as objects,
`commit` makes a cache of them complete exactly once, `read` gives rows in any order, and `maintain`
is for whoever looks after what is stored. Each stands on those before it.
"""
