"""The tokenizer that a student brings, found where the config names it."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from kdscale.config.student import StudentConfig
from kdscale.data.pretrained_tokenizer import load_tokenizer, vocabulary_size
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo, adopt_pretrained
from kdscale.distill.alignment.student_data import StudentTokenizer
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import check_is_name, is_folder, loadable
from kdscale.store import Store, open_store

# Files that say what a tokenizer does.
_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json")


def tokenizer_identity(student: StudentConfig) -> dict[str, Any]:
    """Return what tells one state of the student's tokenizer from another.

    The digests of its files, or name and revision on a hub. Raises KdscaleError where a folder has
    no tokenizer.json.
    """
    source = _source(student)
    if not is_folder(source):
        check_is_name(source)
        return {"name": source, "revision": student.revision}
    store = open_store(source)
    if not store.exists(TOKENIZER_FILE):
        raise KdscaleError(
            f"There is no tokenizer in {store}: it has no {TOKENIZER_FILE}.",
            "Give distill.student.tokenizer a folder that has one, as transformers saves it or "
            "`kdscale data tokenizer` trains it.",
        )
    files = [name for name in _FILES if store.exists(name)]
    return {name: hashlib.sha256(store.get(name)).hexdigest() for name in files}


def student_vocabulary(student: StudentConfig) -> int:
    """Return the ids of the student's tokenizer. KdscaleError where it cannot be loaded."""
    source = loadable(_source(student), weights=False)
    return vocabulary_size(load_tokenizer(source, student.revision).get_vocab())


def adopt(student: StudentConfig, folder: Path, source: str | None = None) -> TokenizerInfo:
    """Write the student's tokenizer to `folder`, without other files, and return its facts.

    `source` is what `from_pretrained` takes on this machine, if it is known. Raises KdscaleError
    where it cannot be loaded or has no end-of-text token.
    """
    source = source or loadable(_source(student), weights=False)
    return adopt_pretrained(source, student.revision, folder, "student")


def keep_own_tokenizer(student: StudentConfig, store: Store, seq_len: int) -> StudentTokenizer:
    """Keep the student's tokenizer in `store`, for sequences of `seq_len` tokens."""
    with tempfile.TemporaryDirectory(prefix="kdscale-tokenizer-") as name:
        folder = Path(name) / "tokenizer"
        found = StudentTokenizer(store, adopt(student, folder), seq_len)
        found.keep(folder)
        return found


def _source(student: StudentConfig) -> str:
    assert student.tokenizer_source is not None
    return student.tokenizer_source
