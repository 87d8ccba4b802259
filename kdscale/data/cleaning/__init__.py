"""Cleaning: from a document's raw bytes to text worth training on, or a reason to drop it.

Every document is decoded and brought to a normal form (`cleaner`), then passes the steps of
`data.cleaning` in their order (`steps`, which registers one maker a kind; `pii` and `minhash` do
the work of two of them). Exact and near duplicates are dropped later, once all documents are
known, by the digests and band hashes that cleaning leaves (`rows.selection`). `augment` makes
varied copies of documents that were kept.
"""
