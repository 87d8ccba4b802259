"""Data: from configured sources to fixed-length sequences with stable sample ids.

`prepare` runs the stage. `sources` finds and reads files and data sets; `cleaning` makes text of
them; `chat` renders conversations and marks the answers; `documents` does both on the cluster, a
part at a time, and keeps the parts in the store (`prepare_checkpoint`) until the stage is complete;
`rows` chooses documents by hashes, packs their tokens into rows, writes shards and reads them back.
A row of this package is what configs and docs call a sequence.

Import from the modules: Ray tasks use `documents`, which loads no torch and so starts fast.
"""
