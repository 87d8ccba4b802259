"""`kdscale run`: the stages of a config, here or on the cluster that Ray connects to."""

from kdscale.cli import options
from kdscale.cli.show import show


def run(
    config: options.Config,
    overrides: options.Overrides = None,
    only: options.Only = None,
    start: options.Start = None,
    until: options.Until = None,
    overwrite: options.Overwrite = False,
    wait_for_lease: options.WaitForLease = None,
) -> None:
    """Run a config's stages: prepare, teacher, cache, distill, evaluate, report.

    What is complete is skipped, what is not is continued.
    """
    options.check_stages(only, start, until)
    from kdscale.config import load_config

    # Before the pipeline, whose imports take seconds: a mistake in the config is told at once.
    resolved = load_config(config, overrides or ())
    from kdscale.pipeline import run_pipeline

    show(run_pipeline(resolved, only, start, overwrite, wait_for_lease, until))
