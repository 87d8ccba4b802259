"""What a finished run has, found from its output alone: it may have been moved, and its corpus may
be elsewhere."""

import json

from kdscale.config import RunConfig, parse_config
from kdscale.config.text import decode_text
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import local_folder, read_marker
from kdscale.store import Store, open_store

_CONFIG_KEY = "config.resolved.yaml"
_RECORD_KEY = "run.json"


class FinishedRun:
    """The run in `output`. Raises KdscaleError where there is none."""

    def __init__(self, output: Store) -> None:
        if not output.exists(_CONFIG_KEY):
            raise KdscaleError(
                f"{output} is not the output of a run: it has no {_CONFIG_KEY}.",
                "Give the `output` of a config that `kdscale run` has completed.",
            )
        text = decode_text(output.get(_CONFIG_KEY), f"{output}/{_CONFIG_KEY}")
        self.config: RunConfig = parse_config(text, origin=f"{output}/{_CONFIG_KEY}")
        self.output = output
        # Where rows and teacher are.
        base = self.config.base
        self._source = output if base is None else open_store(base)

    def models(self) -> list[str]:
        """Those of teacher, student and baseline that are complete."""
        names = ("teacher", "student", "baseline")
        return [name for name in names if read_marker(self._place(name)) is not None]

    def model_folder(self, name: str) -> str:
        """What `from_pretrained` takes on this machine for a model of the run. KdscaleError where
        it is not complete."""
        store = self._place(name)
        marker = read_marker(store)
        if marker is None:
            raise KdscaleError(
                f"There is no complete {name} in {store}.",
                f"It has {', '.join(self.models()) or 'no model yet'}; run its stages first.",
            )
        # A teacher that is only referred to is elsewhere; what lies here may have been moved.
        here = store.exists("config.json")
        return str(local_folder(store.url)) if here else marker.local()

    def prepared(self) -> Prepared:
        """The run's rows. KdscaleError where its prepare stage is not complete."""
        record = self._source.get(_RECORD_KEY) if self._source.exists(_RECORD_KEY) else b"{}"
        stage = json.loads(record).get("stages", {}).get("prepare", {})
        return open_prepared(self._source.child(f"prepared/{stage.get('fingerprint')}"))

    def _place(self, name: str) -> Store:
        return (self._source if name == "teacher" else self.output).child(name)
