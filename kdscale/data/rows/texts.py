"""Text of prepared sequences, spelled from their ids."""

from collections.abc import Iterator

import numpy as np

from kdscale.data.rows.prepared import Prepared
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TOKENIZER_FILE

_ROWS_AT_ONCE = 256


def training_texts(prepared: Prepared) -> Iterator[str]:
    """Yield the text of every document, or part of one, in the training sequences.

    Characters that the edge of a sequence cuts are left out. Raises KdscaleError for a tokenizer
    whose ids do not spell their text.
    """
    tokens = TokenBytes.of(prepared.tokenizer_folder() / TOKENIZER_FILE, prepared.tokenizer_info)
    table = prepared.split("train")
    for first in range(0, len(table), _ROWS_AT_ONCE):
        rows = table.take(np.arange(first, min(first + _ROWS_AT_ONCE, len(table))))
        for ids, segments in zip(rows.input_ids, rows.segment_ids, strict=True):
            for segment in range(1, int(segments.max()) + 1):
                yield tokens.spell(ids[segments == segment]).decode("utf-8", "ignore")
