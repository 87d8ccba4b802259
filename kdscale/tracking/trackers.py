"""Metrics of a stage: always as JSON lines in the store, and in W&B where it is wanted.

The JSON lines are the record that the report is made from; they follow the checkpoints, so a
resumed training neither loses nor repeats a step. W&B is a view of them and must not be able to
hurt: what goes wrong there is printed once and training goes on. This is the only module that
imports wandb, and it does so only when it is used.
"""

import hashlib
import json
import logging
import math
import netrc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from kdscale.store import Store
from kdscale.store.redact import redact
from kdscale.tracking import prometheus as exported
from kdscale.tracking.panels import Panel, artifact_name

if TYPE_CHECKING:
    from kdscale.config.run import RunConfig, TrackingConfig

Mode = Literal["online", "offline", "disabled"]

log = logging.getLogger(__name__)

# What W&B's own variable may say.
_WANDB_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 60.0


def open_tracker(
    config: "TrackingConfig",
    *,
    run: str,
    stage: str,
    store: Store,
    resolved: dict[str, Any],
    start_step: int = 0,
    attempt: int = 0,
) -> "Tracker":
    """The tracker of one stage of the run `run`, for one process (rank 0).

    `store` is the run's output, `resolved` its config as W&B shows it. Of metrics logged before,
    those up to `start_step` stay and later ones are dropped, because a training resumed there
    replays them; at 0 all are dropped. `attempt` counts the starts, and tells apart in W&B what two
    of them logged for one step.
    """
    lines = MetricLines(store, f"metrics/{stage}.jsonl", start_step)
    return Tracker(lines, _open_run(config, run, stage, store, resolved), attempt)


def open_gallery(config: "RunConfig", stage: str, store: Store) -> "WandbRun":
    """The W&B run of a stage that logs no steps: for panels, tables and final values. `store` is
    the output of the run that `config` describes."""
    resolved = config.model_dump(mode="json")
    return WandbRun(_open_run(config.tracking, config.name, stage, store, resolved))


def _open_run(
    config: "TrackingConfig", run: str, stage: str, store: Store, resolved: dict[str, Any]
) -> Any:
    """The run in W&B, None where it is off."""
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


class WandbRun:
    """A run in W&B, or none. Whatever goes wrong there is printed, and nothing else suffers."""

    def __init__(self, wandb_run: Any) -> None:
        self._run = wandb_run
        self._warned: set[str] = set()

    def summary(self, values: dict[str, float | int | str]) -> None:
        """Final values of the stage, shown by W&B beside the run's name."""
        self._tell("summary", lambda run: run.summary.update(values))

    def show(self, panels: Sequence[Panel]) -> None:
        """Charts and tables of the run's own, in sections by what precedes the slash of their key.

        A chart is saved with its drawing: W&B shows it without any layout. Each goes by itself, so
        that one that fails costs no other. Online, a view of those that went is saved beside.
        """

        def send(run: Any, panel: Panel) -> None:
            run.log({panel.key: _drawn(panel)})

        shown = [p for p in panels if self._tell(f"show {p.key}", partial(send, panel=p))]

        def save(run: Any) -> None:
            if not run.offline:
                from kdscale.tracking.wandb_view import save_view

                view = save_view(run.entity, run.project, run.group, run.id, shown)
                _say(f"the view of its charts and tables: {view}")

        self._tell("save a view", save)

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]
    ) -> None:
        """A table that W&B shows beside the charts."""

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._tell("log_table", send)

    def log_reference(self, name: str, type: str, url: str, metadata: dict[str, Any]) -> None:
        """A W&B artifact that points at `url` (or an absolute path) and copies nothing."""

        def send(run: Any) -> None:
            import wandb
            from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

            uri = redact(url) if "://" in url else Path(url).as_uri()
            artifact = wandb.Artifact(artifact_name(name), type, metadata=_redacted(metadata))
            # What `add_reference(checksum=False)` makes, which asks for boto3 on the way.
            entry = ArtifactManifestEntry(path=uri.rpartition("/")[2], digest=uri, ref=uri)
            artifact.manifest.add_entry(entry)
            run.log_artifact(artifact)

        self._tell("log_reference", send)

    def log_folder(self, name: str, type: str, folder: Path, metadata: dict[str, Any]) -> None:
        """A W&B artifact with the files of `folder`, which must stay until they are uploaded."""

        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(artifact_name(name), type, metadata=_redacted(metadata))
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    relative = path.relative_to(folder).as_posix()
                    # `immutable` saves the copy of every file that W&B makes otherwise.
                    artifact.add_file(str(path), relative, skip_cache=True, policy="immutable")
            run.log_artifact(artifact)

        self._tell("log_folder", send)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; other than 0 marks it as failed."""
        self._tell("finish", lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _tell(self, what: str, action: Callable[[Any], None]) -> bool:
        """Do something with the W&B run: whether it went. Errors are printed, once a `what`."""
        if self._run is None:
            return False
        try:
            action(self._run)
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                _say(f"{what} failed, the run goes on without it: {_brief(error)}")
            return False
        return True


class Tracker(WandbRun):
    """Where a stage sends its metrics. Only `log` and `flush` touch the store."""

    def __init__(self, lines: "MetricLines", wandb_run: Any, attempt: int) -> None:
        super().__init__(wandb_run)
        self._lines = lines
        self._attempt = attempt

    def log(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """Record `metrics` after `step` steps and `tokens` target tokens, both counted from 1.

        A value that is not finite becomes null in the JSON lines.
        """
        self._lines.append(step, tokens, metrics)
        exported.logged(metrics)
        row = {
            **metrics,
            "trainer/global_step": step,
            "trainer/tokens": tokens,
            "trainer/attempt": self._attempt,
        }
        # Not `step=`: W&B drops a step that goes back, which is what a restart does.
        self._tell("log", lambda run: run.log(row))

    def flush(self) -> None:
        """Bring all lines to the store: called with every checkpoint, after it is complete."""
        self._lines.flush()

    def finish(self, exit_code: int = 0) -> None:
        """Flush, and close the W&B run; other than 0 marks it as failed."""
        self._lines.close()
        super().finish(exit_code)


class MetricLines:
    """A file of JSON lines: appended to in a local store, put whole at a flush in others."""

    def __init__(self, store: Store, key: str, start_step: int) -> None:
        self._store = store
        self._key = key
        before = store.get(key).decode(errors="replace") if store.exists(key) else ""
        self._text = "".join(_lines_up_to(before, start_step))
        if self._text != before:
            store.put(key, self._text.encode())
        path = store.local_path(key)
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def append(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """Add one line, in the operating system's hands at once where the store is local."""
        record: dict[str, Any] = {"step": step, "tokens": tokens, "time": time.time()}
        for name, value in metrics.items():
            record[name] = float(value) if math.isfinite(value) else None
        line = json.dumps(record) + "\n"
        if self._file is None:
            self._text += line
        else:
            self._file.write(line)
            self._file.flush()

    def flush(self) -> None:
        """Make all lines so far survive this process and this machine."""
        if self._file is None:
            self._store.put(self._key, self._text.encode())
        else:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush for the last time."""
        self.flush()
        if self._file is not None:
            self._file.close()


def _lines_up_to(text: str, step: int) -> Iterator[str]:
    """Lines of steps 1 to `step`; a line that a killed writer tore is not one of them."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if step > 0 and record["step"] <= step:
            yield line + "\n"


def _mode(wanted: Literal["auto", "online", "offline", "disabled"]) -> Mode:
    """Where W&B should go, given what is configured and what is there."""
    if wanted == "auto":
        asked = _WANDB_MODES.get(os.environ.get("WANDB_MODE", ""))
        return asked or ("online" if _has_key() else "offline")
    if wanted == "online" and not _has_key():
        # wandb would ask for the key at the terminal, and wait.
        _say("no API key was found (`wandb login` or WANDB_API_KEY), so this run is offline")
        return "offline"
    return wanted


def wandb_target() -> tuple[Mode, str]:
    """What `tracking.wandb: auto` comes to here, and the URL of the server that online means; ""
    where W&B is not online."""
    mode = _mode("auto")
    if mode != "online":
        return mode, ""
    import wandb

    return mode, wandb.setup(wandb.Settings(silent=True)).settings.base_url


def _has_key() -> bool:
    """Whether W&B has credentials: in the environment, its settings, or a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        import wandb

        settings = wandb.setup(wandb.Settings(silent=True)).settings
    except Exception as error:
        _say(f"its settings cannot be used: {_brief(error)}")
        return False
    hosts = {urlsplit(settings.base_url).netloc, "api.wandb.ai"}
    try:
        known = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: no UTF-8
        known = {}
    return bool(settings.api_key) or not hosts.isdisjoint(known)


def _open_wandb(mode: Literal["online", "offline"], options: dict[str, Any]) -> Any:
    """The W&B run, offline where online fails, None where that fails too."""
    try:
        return _init(mode, options)
    except Exception as error:
        _say(f"{mode} failed: {_brief(error)}")
    if mode == "offline":
        return None
    try:
        import wandb

        # The failed run still holds its id in wandb's service process.
        wandb.teardown()
        return _init("offline", options)
    except Exception as error:
        _say(f"offline failed too: {_brief(error)}")
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
    _say(offline if mode == "offline" else run.url)
    return run


def _drawn(panel: Panel) -> Any:
    """A panel as W&B's table, or as one of its charts over that table."""
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
    """`value` with every string in it redacted."""
    if isinstance(value, dict):
        return {key: _redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(each) for each in value]
    return redact(value) if isinstance(value, str) else value


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {redact(str(error)).splitlines()[0] if str(error) else ''}"


def _say(text: str) -> None:
    # A warning is shown wherever this runs: by a worker's handler, or by Python's last resort.
    log.warning("W&B: %s", text)
