"""Rows: from token documents to the fixed-length sequences that models see.

`selection` chooses documents by hashes, `classes` numbers their labels, `pack` and `examples` build
rows, `splits` writes a split's rows in `shard_files`, `manifest` publishes them last, `prepared`
reads them back, and `order` names the rows of a batch.
"""
