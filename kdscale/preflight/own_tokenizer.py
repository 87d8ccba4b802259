"""The tokenizer of a student that brings its own, and what it has in common with the teacher's."""

from pathlib import Path

from kdscale.data.rows.order import spread
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo
from kdscale.distill.alignment import AlignedRows, Aligner, TokenizerPair
from kdscale.distill.student_tokenizer import adopt
from kdscale.errors import KdscaleError
from kdscale.models.load import load_config_of
from kdscale.preflight.context import Context, KnownData
from kdscale.preflight.locate import locate

# Sequences of prepared data that are tokenised again.
_SAMPLE = 64


def check_own_tokenizer(context: Context) -> None:
    """Refuse a tokenizer that cannot serve, or that has nothing in common with the teacher's."""
    student = context.config.distill.student
    assert student.tokenizer_source is not None
    if student.tokenizer is not None:
        source = locate(context, "distill.student.tokenizer", student.tokenizer)
    else:
        source = context.student_source
    if source is None:
        return
    with context.findings.check("the student's own tokenizer"):
        folder = context.scratch / "student-tokenizer"
        info = adopt(student, folder, source)
        _check_embeddings(context, info)
        own = _spelled("student", folder, info)
        context.student_data = KnownData(
            info.vocab_size, (), info.special_ids, True, folder, info.sha256
        )
    teacher = context.data
    if teacher is None or teacher.tokenizer is None:
        return
    with context.findings.check("what both tokenizers have in common"):
        theirs = _spelled("teacher", teacher.tokenizer, _info(teacher))
        pair = TokenizerPair.build(theirs, own)
        _check_sample(context, pair)


def _check_embeddings(context: Context, info: TokenizerInfo) -> None:
    """Refuse a student to be loaded with fewer embeddings than its tokenizer has ids."""
    if context.student_source is None:
        return
    shape = load_config_of(context.student_source, context.config.distill.student.revision)
    rows = shape.get_text_config().vocab_size
    if rows < info.vocab_size:
        raise KdscaleError(
            f"The student in distill.student.load has {rows:,} embeddings, and its own tokenizer "
            f"{info.vocab_size:,} ids.",
            "Give it more embeddings (transformers' resize_token_embeddings), or another tokenizer "
            "in distill.student.tokenizer.",
        )


def _spelled(owner: str, folder: Path, info: TokenizerInfo) -> TokenBytes:
    """Return the bytes of the ids of the tokenizer in `folder`, that of the model `owner`."""
    try:
        return TokenBytes.of(folder / TOKENIZER_FILE, info)
    except KdscaleError as error:
        raise KdscaleError(f"The {owner}'s tokenizer: {error.problem}", error.fix) from error


def _check_sample(context: Context, pair: TokenizerPair) -> None:
    """Tokenise prepared sequences again; refuse a pair that gives them no target."""
    if context.prepared is None:
        return
    table = context.prepared.training("cache")
    rows, seq_len = table.take(spread(_SAMPLE, len(table))), context.config.student_seq_len
    made = Aligner(pair, seq_len).convert(rows)
    targets, covered = int(made.coverage.targets.sum()), int(made.coverage.covered.sum())
    if not covered:
        raise KdscaleError(
            f"None of {targets:,} positions of {len(rows)} training sequences has a target: there "
            "is no boundary that the teacher's tokenizer and the student's have in common.",
            "Set distill.tokenizer to `teacher`, or give a student with another tokenizer.",
        )
    _note_cut(context, made, seq_len)


def _note_cut(context: Context, made: AlignedRows, seq_len: int) -> None:
    """Note text that the student's sequences have no room for."""
    cut = made.coverage.cut_bytes
    if not cut:
        return
    share = cut / (float(made.rows.byte_counts.sum()) + cut)
    context.findings.note(
        f"{share:.1%} of the text has no room in the student's sequences of {seq_len:,} tokens, "
        "and is left out of training and of the student's figures: raise distill.seq_len."
    )


def _info(data: KnownData) -> TokenizerInfo:
    assert data.digest is not None
    start, end, pad = (data.special_ids[f"{role}_token_id"] for role in ("bos", "eos", "pad"))
    return TokenizerInfo(data.vocab_size, data.digest, start, end, pad)
