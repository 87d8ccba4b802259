"""A student's own tokenizer in a run: where it is kept, and prepared data in its tokens.

Prepared data and caches are in the teacher's tokens and stay so. The bytes of a sequence follow
from its ids, exactly, so that nothing but the tokenizer and its classes has to be kept beside them.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kdscale.data.rows.prepared import Prepared, RowTable
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo
from kdscale.distill.alignment.aligner import Aligner
from kdscale.distill.alignment.pair import TokenizerPair
from kdscale.losses.classes import ClassMap
from kdscale.store import Store, download_folder, upload_folder
from kdscale.types import Rows
from kdscale.utils.local_cache_dir import local_cache_dir

FOLDER = "alignment"
"""Place of tokenizers and pairs below a run's output."""

_DIGITS = 16


class StudentTokenizer:
    """A tokenizer kept in `store`, a run's folder for alignment, under a digest of its facts.

    `seq_len` is that of the student's sequences. Cheap to pickle: all is read when it is needed.
    """

    def __init__(self, store: Store, info: TokenizerInfo, seq_len: int) -> None:
        self.info = info
        self.seq_len = seq_len
        self._store = store
        # The same file may have other ends of a text.
        facts = json.dumps(info.as_dict(), sort_keys=True)
        self._key = f"tokenizer-{hashlib.sha256(facts.encode()).hexdigest()[:_DIGITS]}"

    def __getstate__(self) -> dict[str, Any]:
        names = ("info", "seq_len", "_store", "_key")
        return {name: getattr(self, name) for name in names}

    def keep(self, folder: Path) -> None:
        """Keep the tokenizer in `folder`, unless it is there."""
        if not self._store.exists(f"{self._key}/{TOKENIZER_FILE}"):
            upload_folder(folder, self._store, self._key, last=TOKENIZER_FILE)

    @cached_property
    def folder(self) -> Path:
        """A local folder for `AutoTokenizer.from_pretrained`; fetched if the store is remote."""
        here = self._store.local_path(self._key)
        if here is not None:
            return here
        return download_folder(self._store, self._key, local_cache_dir("prepared") / self._key)

    def build(self, prepared: Prepared) -> None:
        """Build the pair with the tokenizer of `prepared`, unless it is there.

        Raises KdscaleError where ids of one do not spell their text, or the two have nothing in
        common.
        """
        theirs, mine = (
            TokenBytes.of(folder / TOKENIZER_FILE, info) for folder, info in self._both(prepared)
        )
        TokenizerPair.get(self._store, theirs, mine)

    def pair(self, prepared: Prepared) -> TokenizerPair:
        """Return the pair with the tokenizer of `prepared`."""
        theirs, mine = (
            TokenBytes((folder / TOKENIZER_FILE).read_bytes(), info)
            for folder, info in self._both(prepared)
        )
        return TokenizerPair.get(self._store, theirs, mine)

    def _both(self, prepared: Prepared) -> list[tuple[Path, TokenizerInfo]]:
        """Return folder and facts of the teacher's tokenizer and of this one."""
        teacher = (prepared.tokenizer_folder(), prepared.tokenizer_info)
        return [teacher, (self.folder, self.info)]


class AlignedPrepared(Prepared):
    """Prepared data in the tokens of a student: the same sequences, by the same numbers.

    `teachers` is the same data in the teacher's tokens.
    """

    def __init__(self, prepared: Prepared, tokenizer: StudentTokenizer) -> None:
        super().__init__(prepared._store, prepared.manifest, prepared._checksum)
        self.teachers = prepared
        self.tokenizer = tokenizer

    @cached_property
    def pair(self) -> TokenizerPair:
        """Both tokenizers."""
        return self.tokenizer.pair(self.teachers)

    @cached_property
    def aligner(self) -> Aligner:
        """Maker of its sequences."""
        return Aligner(self.pair, self.tokenizer.seq_len)

    @property
    def vocab_size(self) -> int:
        """See Prepared."""
        return self.tokenizer.info.vocab_size

    @property
    def seq_len(self) -> int:
        """See Prepared."""
        return self.tokenizer.seq_len

    @property
    def special_ids(self) -> dict[str, int]:
        """See Prepared."""
        return self.tokenizer.info.special_ids

    def training(self, stage: Literal["teacher", "cache"]) -> "AlignedTable":
        """See Prepared."""
        return AlignedTable(self.teachers.training(stage), self.aligner)

    def split(self, name: str) -> "AlignedTable":
        """See Prepared."""
        return AlignedTable(self.teachers.split(name), self.aligner)

    def tokenizer_folder(self) -> Path:
        """See Prepared."""
        return self.tokenizer.folder


def class_map(pair: TokenizerPair, device: torch.device) -> ClassMap:
    """Return the classes of a pair's ids on `device`, for the loss."""
    teacher, student = map(torch.from_numpy, (pair.teacher_classes, pair.student_classes))
    return ClassMap.of(teacher, student, pair.class_count, device)


class AlignedTable(RowTable):
    """The rows of a table in the tokens of a student."""

    def __init__(self, table: RowTable, aligner: Aligner) -> None:
        super().__init__(table._store, table._splits, table._row_length)
        self._aligner = aligner

    def take(self, indices: np.ndarray) -> Rows:
        """See RowTable."""
        return self._aligner.convert(super().take(indices)).rows
