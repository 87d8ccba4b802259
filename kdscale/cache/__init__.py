"""The logit cache: a teacher's distributions over a corpus, in a few bytes a token.

`codecs` turn a distribution into bytes and back. `format` stores shards of sequences as objects,
`commit` completes a cache of them exactly once, `read` gives sequences in any order, and `maintain`
inspects, verifies, repairs, exports and cleans up. Each imports only those before it.
"""
