"""The report stage: the page, the model cards, and the charts in W&B."""

from kdscale.evaluate.results import read_results, write_results
from kdscale.report import write_model_card, write_report
from kdscale.report.load import load_report_data
from kdscale.report.panels import panels, summary
from kdscale.run.stages.base import Stage, StageContext
from kdscale.tracking.wandb_run import open_wandb_run


def _make(context: StageContext) -> list[str]:
    """Write the report of the results."""
    run = context.run
    # The evaluate stage could not know its own seconds.
    results = read_results(run.output)
    write_results(run.output, {**results, "seconds": context.record.seconds()})
    write_report(run.output)
    for name in run.student_names:
        write_model_card(run.output, name)
    found = load_report_data(run.output)
    gallery = open_wandb_run(run.config, "report", run.output)
    gallery.summary(summary(found))
    gallery.show(panels(found))
    gallery.finish()
    return [f"{run.output}/report/index.html"]


STAGE = Stage(
    name="report",
    fingerprint=lambda run: run.evaluate_fingerprint,
    is_complete=lambda run, record: record.fingerprint("report") == run.evaluate_fingerprint,
    make=_make,
    needs_ray=False,
    supports_graceful_stop=False,
    repeats_alone=True,
)
