"""The prepare stage: from a corpus to a tokenizer and to sequences of tokens."""

from kdscale.data.prepare import prepare
from kdscale.data.rows.manifest import summarise
from kdscale.run.stages.base import Stage, StageContext
from kdscale.teacher.pretrained import own_tokenizer


def _make(context: StageContext) -> list[str]:
    """Clean, tokenise and pack the documents."""
    run = context.run
    config = run.config
    with own_tokenizer(config) as tokenizer:
        manifest = prepare(
            config.data,
            task=config.task,
            store=run.prepared_store,
            teacher_tokenizer=tokenizer,
            progress=context.progress.update,
            identity=run.prepare_fingerprint,
        )
    return [f"{what}: {numbers}" for what, numbers in summarise(manifest)]


STAGE = Stage(
    name="prepare",
    fingerprint=lambda run: run.prepare_fingerprint,
    is_complete=lambda run, record: run.prepared_store.exists("manifest.json"),
    make=_make,
    supports_graceful_stop=False,
    comes_from_base=True,
)
