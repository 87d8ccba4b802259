"""A saved view of a W&B project: the charts and tables of one run, in its report's order.

Charts appear in a run's page, one section each; a view puts them in the report's order and beside
the curves of the run's stages. The only import of wandb_workspaces, W&B's library for this. It
calls W&B's server, so a view is made only of runs that are online.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdscale.tracking.metrics import VIEW_KEYS
from kdscale.tracking.panels import Panel

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

CHARTS = {
    "lines": ("wandb/line/v0", ("x", "y", "stroke")),
    "bars": ("wandb/bar/v0", ("label", "value")),
    "confusion": ("wandb/confusion_matrix/v1", ("Actual", "Predicted", "nPredictions")),
}
"""W&B's drawing of each kind, and what it calls the columns in their order."""


def build_view(
    entity: str, project: str, group: str, run: str, panels: Sequence[Panel]
) -> "Workspace":
    """Build the view of the runs in `group`, whose `panels` the run of that id has logged."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=[_panel(p) for p in panels if p.section == name], is_open=True)
        for name in dict.fromkeys(panel.section for panel in panels)
    ]
    curves = [wr.LinePlot(title=key, x="trainer/global_step", y=[key]) for key in VIEW_KEYS]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{group}: report",
        sections=[*sections, ws.Section(name="stages", panels=curves)],
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == group), pinned_runs=[run]
        ),
    )


def save_view(entity: str, project: str, group: str, run: str, panels: Sequence[Panel]) -> str:
    """Save the view with W&B's server, and return its address."""
    return str(build_view(entity, project, group, run, panels).save().url)


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.key)
    chart, fields = CHARTS[panel.kind]
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": f"{panel.key}_table"}},
        chart_name=chart,
        chart_fields=dict(zip(fields, panel.columns, strict=True)),
        chart_strings={"title": panel.name},
    )
