"""Sources: from a configured path or data set to documents as bytes or text.

`folders` lists files, `corpus` turns sources into inputs in a fixed order, `readers` reads the
documents of one input through `opening` (compression and encodings), `json_records` and
`csv_records`, and `fields` takes text, conversation and label from a record.
"""
