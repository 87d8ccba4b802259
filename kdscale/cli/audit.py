"""`kdscale cache audit`: the error of a cache's codec in a student's gradients, and better ones."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kdscale.cli import options
from kdscale.cli.show import aligned


def audit(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="A cache's folder, or the output of a run.")
    ],
    rows: Annotated[int, typer.Option(min=1, help="Rows of the cache to look at.")] = 16,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1,
            callback=options.finite,
            help="Stored bytes a token to recommend a codec for.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Draws of each target.")] = 4,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The teacher, where no run is beside the cache."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML page with charts.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare a cache's codec, and others of its size, with the teacher's full distribution.

    Exit code 1 if the cache does not agree with its teacher.
    """
    from transformers.utils.logging import disable_progress_bar

    from kdscale.cache.fidelity.audit import audit as audit_cache
    from kdscale.cache.fidelity.page import render_audit
    from kdscale.cache.fidelity.tables import advice, audit_table, proof_sentence
    from kdscale.cli.find import find_cache
    from kdscale.utils.text_table import terminal_width, wrapped
    from kdscale.workers.progress import stage_progress

    disable_progress_bar()
    with stage_progress("audit") as shown:
        found = audit_cache(
            find_cache(uri),
            teacher=teacher,
            rows=rows,
            budget=budget,
            draws=seeds,
            say=lambda line: typer.echo(line, err=True),
            progress=lambda done, total: shown.update(done, total, "positions"),
        )
    if out is not None:
        out.write_text(render_audit(found), encoding="utf-8")
        typer.echo(f"wrote {out}", err=True)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    else:
        typer.echo(aligned(audit_table(found)))
        sentence = wrapped(proof_sentence(found), terminal_width())
        typer.echo(f"\n{sentence}\n\n{advice(found)}")
    raise typer.Exit(0 if found.agrees else 1)
