"""How much of what is captured the student reads."""

from kdscale.errors import KdscaleError
from kdscale.preflight.tokens import count_tokens
from kdscale.preflight.view import View

_MUCH = 1.5  # times as many rows captured as read


def note_unread(view: View) -> None:
    """Note rows that the cache captures and the student will never read, and batches that are
    larger than the cache."""
    config, training = view.config, view.config.distill.training
    if config.cache.reuse is not None:
        return
    captured = _captured(view)
    if captured is None:
        return
    rows, is_exact = captured
    about = "" if is_exact else "about "
    read = training.steps * training.global_batch_size
    if rows > _MUCH * read and view.makes("cache"):
        share = f"{read / rows:.0%}" if read >= rows / 100 else "less than 1%"
        view.findings.note(
            f"The student reads {read:,} rows ({training.steps:,} steps of "
            f"{training.global_batch_size:,}), {share} of the {about}{rows:,} that the cache "
            f"captures: set cache.sequences to {read}, or train it for longer."
        )
    if training.global_batch_size > rows:
        view.findings.note(
            f"A batch has {training.global_batch_size:,} rows "
            f"(distill.training.global_batch_size), and the cache {about}{rows:,}: "
            "it will have some of them more than once."
        )


def _captured(view: View) -> tuple[int, bool] | None:
    """Rows of the cache, and whether these are counted; None where nobody knows."""
    if view.prepared is not None:
        return len(view.run.selected), True
    if view.data is None and view.sight.tokens is None:
        return None
    ids = view.data.vocab_size if view.data is not None else 32_000
    try:
        found = count_tokens(view.config, ids, view.sight.tokens)
    except (KdscaleError, OSError):
        return None
    return found.captured_rows, found.prepared
