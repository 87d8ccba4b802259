"""Runs in W&B: opening them, and sending metrics, panels and artifacts.

W&B is a view of what the store has and must not disturb a stage: errors are logged once and the
stage continues. The only import of wandb, and only where it is used.
"""

import hashlib
import json
import logging
import netrc
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from kdscale.store import Store
from kdscale.store.redact import redact
from kdscale.tracking.panels import Panel, artifact_name

if TYPE_CHECKING:
    from kdscale.config.run import RunConfig, TrackingConfig

Mode = Literal["online", "offline", "disabled"]

log = logging.getLogger(__name__)

# The values of W&B's own variable.
_WANDB_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0


class WandbRun:
    """A run in W&B, or none; errors are logged and affect nothing else."""

    def __init__(self, wandb_run: Any) -> None:
        self._run = wandb_run
        self._warned: set[str] = set()

    def summary(self, values: dict[str, float | int | str]) -> None:
        """Set final values of the stage, shown by W&B beside the run's name."""
        self._send("summary", lambda run: run.summary.update(values))

    def show(self, panels: Sequence[Panel]) -> None:
        """Send charts and tables, in sections by what precedes the slash of their key.

        A chart is saved with its drawing: W&B shows it without any layout. Each is sent separately,
        so that one that fails costs no other. Online, a view of those that arrived is saved beside.
        """

        def send(run: Any, panel: Panel) -> None:
            run.log({panel.key: _drawn(panel)})

        shown = [p for p in panels if self._send(f"show {p.key}", partial(send, panel=p))]

        def save(run: Any) -> None:
            if not run.offline:
                from kdscale.tracking.wandb_view import save_view

                view = save_view(run.entity, run.project, run.group, run.id, shown)
                _warn(f"the view of its charts and tables: {view}")

        self._send("save a view", save)

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        """Send a table that W&B shows beside the charts."""

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._send("log_table", send)

    def log_reference(self, name: str, type: str, url: str, metadata: dict[str, Any]) -> None:
        """Send an artifact that points at `url` (or an absolute path) and copies nothing."""

        def send(run: Any) -> None:
            import wandb
            from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

            uri = redact(url) if "://" in url else Path(url).as_uri()
            artifact = wandb.Artifact(artifact_name(name), type, metadata=_redacted(metadata))
            # What `add_reference(checksum=False)` makes, which asks for boto3 on the way.
            entry = ArtifactManifestEntry(path=uri.rpartition("/")[2], digest=uri, ref=uri)
            artifact.manifest.add_entry(entry)
            run.log_artifact(artifact)

        self._send("log_reference", send)

    def log_folder(self, name: str, type: str, folder: Path, metadata: dict[str, Any]) -> None:
        """Send an artifact with the files of `folder`, which must stay until they are uploaded."""

        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(artifact_name(name), type, metadata=_redacted(metadata))
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    relative = path.relative_to(folder).as_posix()
                    # `immutable` saves the copy of every file that W&B makes otherwise.
                    artifact.add_file(str(path), relative, skip_cache=True, policy="immutable")
            run.log_artifact(artifact)

        self._send("log_folder", send)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; other than 0 marks it as failed."""
        self._send("finish", lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _send(self, what: str, action: Callable[[Any], None]) -> bool:
        """Call `action` with the W&B run; return whether it succeeded; log errors once a `what`."""
        if self._run is None:
            return False
        try:
            action(self._run)
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                _warn(f"{what} failed, the run continues without it: {_brief(error)}")
            return False
        return True


def open_wandb_run(config: "RunConfig", stage: str, store: Store) -> "WandbRun":
    """Open the W&B run of a stage that logs no steps, for panels, tables and final values.

    `store` is the output of the run that `config` describes.
    """
    resolved = config.model_dump(mode="json")
    return WandbRun(start_run(config.tracking, config.name, stage, store, resolved))


def start_run(
    config: "TrackingConfig", run: str, stage: str, store: Store, resolved: dict[str, Any]
) -> Any:
    """Start or resume the run in W&B; None where it is off."""
    mode = _mode(config.wandb)
    if mode == "disabled":
        return None
    folder = store.local_path() or Path.cwd()
    identity = json.dumps([config.project, run, str(store), stage])
    options = {
        "project": config.project,
        "entity": config.entity,
        "id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "name": f"{run}-{stage}",
        "group": run,
        "job_type": stage,
        "config": _redacted(resolved),
        "dir": str(folder),
        "resume": "allow",
    }
    folder.mkdir(parents=True, exist_ok=True)
    return _open_wandb(mode, options)


def _mode(wanted: Literal["auto", "online", "offline", "disabled"]) -> Mode:
    """Return the mode to use, given the config and the environment."""
    if wanted == "auto":
        asked = _WANDB_MODES.get(os.environ.get("WANDB_MODE", ""))
        return asked or ("online" if _has_key() else "offline")
    if wanted == "online" and not _has_key():
        # wandb would ask for the key at the terminal, and wait.
        _warn("no API key was found (`wandb login` or WANDB_API_KEY), so this run is offline")
        return "offline"
    return wanted


def wandb_target() -> tuple[Mode, str]:
    """Return the mode of `tracking.wandb: auto` here, and the server's URL where it is online."""
    mode = _mode("auto")
    if mode != "online":
        return mode, ""
    import wandb

    return mode, wandb.setup(wandb.Settings(silent=True)).settings.base_url


def _has_key() -> bool:
    """Return whether W&B has credentials: in the environment, its settings, or a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        import wandb

        settings = wandb.setup(wandb.Settings(silent=True)).settings
    except Exception as error:
        _warn(f"its settings cannot be used: {_brief(error)}")
        return False
    hosts = {urlsplit(settings.base_url).netloc, "api.wandb.ai"}
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: no UTF-8
        known = {}
    return bool(settings.api_key) or not hosts.isdisjoint(known)


def _open_wandb(mode: Literal["online", "offline"], options: dict[str, Any]) -> Any:
    """Return the W&B run, offline where online fails, None where that fails too."""
    try:
        return _init(mode, options)
    except Exception as error:
        _warn(f"{mode} failed: {_brief(error)}")
    if mode == "offline":
        return None
    try:
        import wandb

        # The failed run still holds its id in wandb's service process.
        wandb.teardown()
        return _init("offline", options)
    except Exception as error:
        _warn(f"offline failed too: {_brief(error)}")
        return None


def _init(mode: Literal["online", "offline"], options: dict[str, Any]) -> Any:
    import wandb

    # Once for the process and once for the run: each prints things of its own.
    wandb.setup(wandb.Settings(silent=True))
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )
    run = wandb.init(**options, mode=mode, reinit="create_new", settings=settings)
    run.define_metric("trainer/global_step")
    # The other clock: any chart can be drawn over tokens instead of steps.
    run.define_metric("trainer/tokens")
    run.define_metric("*", step_metric="trainer/global_step")
    folder = run.settings.sync_dir
    offline = f"offline. Look: wandb leet {folder}   Upload: wandb sync {folder}"
    _warn(offline if mode == "offline" else run.url)
    return run


def _drawn(panel: Panel) -> Any:
    """Return a panel as W&B's table, or as one of its charts over that table."""
    import wandb

    rows = [_redacted(row) for row in panel.rows]
    table = wandb.Table(columns=list(panel.columns), data=rows)
    if panel.kind == "lines":
        x, y, line = panel.columns
        return wandb.plot.line(table, x, y, stroke=line, title=panel.name)
    if panel.kind == "bars":
        return wandb.plot.bar(table, *panel.columns, title=panel.name)
    if panel.kind == "confusion":
        names = dict(zip(("Actual", "Predicted", "nPredictions"), panel.columns, strict=True))
        # What `plot.confusion_matrix` draws, which would count single predictions.
        chart = "wandb/confusion_matrix/v1"
        return wandb.plot_table(chart, table, names, {"title": panel.name})
    return table


def _redacted(value: Any) -> Any:
    """Return `value` with every string in it redacted."""
    if isinstance(value, dict):
        return {key: _redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(each) for each in value]
    return redact(value) if isinstance(value, str) else value


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {redact(str(error)).splitlines()[0] if str(error) else ''}"


def _warn(text: str) -> None:
    # A warning is shown wherever this runs: by a worker's handler, or by Python's last resort.
    log.warning("W&B: %s", text)
