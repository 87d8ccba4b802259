"""A run opened from its output alone: its config, its record, its models and its data.

The output may have been moved, its corpus may be elsewhere, and its config may be one that this
version refuses: text and tree of the config are there without parsing it. Nothing is read before
it is asked for.
"""

import json
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kdscale.config import RunConfig, parse_config
from kdscale.config.load import parse_tree
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store

if TYPE_CHECKING:
    # These import torch.
    from kdscale.data.rows.prepared import Prepared
    from kdscale.models.hf_folder import ModelReference

CONFIG_KEY = "config.resolved.yaml"
RECORD_KEY = "run.json"


class FinishedRun:
    """The run whose output is at `output`."""

    def __init__(self, output: Store) -> None:
        self.output = output

    @cached_property
    def config_text(self) -> str:
        """The resolved config as it was written, "" if there is none."""
        if not self.output.exists(CONFIG_KEY):
            return ""
        return self.output.get(CONFIG_KEY).decode(errors="replace")

    @cached_property
    def config_tree(self) -> dict[str, Any]:
        """The resolved config as a tree, whatever its version; empty if there is none.

        Raises:
            KdscaleError: It is not YAML.
        """
        text = self.config_text
        return parse_tree(text, self._config_origin) if text.strip() else {}

    @cached_property
    def config(self) -> RunConfig:
        """The resolved config.

        Raises:
            KdscaleError: There is none, or this version refuses it.
        """
        if not self.config_text:
            raise self._no_run(CONFIG_KEY)
        return parse_config(self.config_text, origin=self._config_origin)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of `run.json`. Raises KdscaleError if there is none."""
        if not self.output.exists(RECORD_KEY):
            raise self._no_run(RECORD_KEY)
        found: dict[str, Any] = json.loads(self.output.get(RECORD_KEY))
        return found

    def fingerprint(self, stage: str) -> str | None:
        """Return the fingerprint that `stage` was last run with, None if it is not recorded."""
        if not self.output.exists(RECORD_KEY):
            return None
        found: str | None = self.record["stages"].get(stage, {}).get("fingerprint")
        return found

    @cached_property
    def source(self) -> "FinishedRun":
        """The run that has the data, the teacher and the cache: this one or its base."""
        base = self.config_tree.get("base")
        return self if base is None else FinishedRun(open_store(base))

    def caches(self) -> list[Store]:
        """Return where the run has its cache: inside its output, or where its config says."""
        found = []
        if name := self.source.fingerprint("cache"):
            found.append(self.source.output.child(f"cache/{name}"))
        settings = self.config_tree.get("cache", {})
        elsewhere = settings.get("append_to") or settings.get("reuse")
        if isinstance(elsewhere, str):
            found.append(open_store(elsewhere))
        return found

    def mixed_caches(self) -> list[tuple[Store, float]]:
        """Return the caches that the student reads as one, with weights; none where it has one."""
        reuse = self.config_tree.get("cache", {}).get("reuse")
        if not isinstance(reuse, list):
            return []
        return [(open_store(each["url"]), float(each.get("weight", 1.0))) for each in reuse]

    def pinned_generations(self) -> list[int] | None:
        """Return how many generations of each of its caches the student reads, once it has."""
        if not self.output.exists(RECORD_KEY):
            return None
        pins = self.record.get("pinned", {}).get("cache_generations")
        return None if pins is None else list(pins["value"])

    def models(self) -> list[str]:
        """Return which of teacher, student, baseline and the student before are complete."""
        names = ("teacher", "student", "baseline", "before")
        return [name for name in names if self.model(name) is not None]

    def model(self, name: str) -> "ModelReference | None":
        """Return the complete model `name` where it is now, None if it is not complete."""
        from kdscale.models.hf_folder import read_marker

        store = self._place(name)
        marker = read_marker(store)
        # The marker of a model that was copied names the place of before; that of a teacher
        # without weights refers to a model elsewhere.
        if marker is not None and any(key.endswith(".safetensors") for key in store.list()):
            return replace(marker, source=store.url, revision=None)
        return marker

    def model_folder(self, name: str) -> str:
        """Return what `from_pretrained` takes on this machine for the model `name`.

        Raises:
            KdscaleError: The model is not complete.
        """
        reference = self.model(name)
        if reference is None:
            raise KdscaleError(
                f"There is no complete {name} in {self._place(name)}.",
                f"It has {', '.join(self.models()) or 'no model yet'}; run its stages first.",
            )
        return reference.local()

    def prepared(self) -> "Prepared":
        """Return the run's data. Raises KdscaleError if its prepare stage is not complete."""
        from kdscale.data.rows.prepared import open_prepared

        name = self.source.fingerprint("prepare")
        if name is None:
            raise KdscaleError(
                f"The run in {self.source.output} names no prepared data.",
                "Finish it: kdscale run CONFIG --from prepare.",
            )
        return open_prepared(self.source.output.child(f"prepared/{name}"))

    def data_of(self, model: str) -> "Prepared":
        """Return the run's data in the tokens of its model `model`.

        Raises KdscaleError where the data or the model is not complete.
        """
        distill = self.config_tree.get("distill", {})
        if model == "teacher" or distill.get("tokenizer", "teacher") == "teacher":
            return self.prepared()
        from kdscale.data.tokenizer import adopt_pretrained
        from kdscale.distill.alignment.student_data import FOLDER, AlignedPrepared, StudentTokenizer

        seq_len = distill.get("seq_len") or self.config_tree["data"]["seq_len"]
        with TemporaryDirectory(prefix="kdscale-tokenizer-") as scratch:
            info = adopt_pretrained(self.model_folder(model), None, Path(scratch), "student")
        tokenizer = StudentTokenizer(self.output.child(FOLDER), info, seq_len)
        return AlignedPrepared(self.prepared(), tokenizer)

    @property
    def _config_origin(self) -> str:
        return f"{self.output}/{CONFIG_KEY}"

    def _place(self, name: str) -> Store:
        owner = self.source if name == "teacher" else self
        return owner.output.child(name)

    def _no_run(self, key: str) -> KdscaleError:
        return KdscaleError(
            f"{self.output} is not the output of a run: it has no {key}.",
            "Give the `output` of a run's config, a path or a URL.",
        )


def find_cache(place: str, *, published: bool = True) -> Store:
    """Return the cache at `place`: a cache's folder, or the one that the run there used last.

    Raises KdscaleError where there is none, or none that is `published`.
    """
    store = open_store(place)
    for candidate in chain([store], FinishedRun(store).caches()):
        if candidate.list("manifests/" if published else "plans/"):
            return candidate
    raise KdscaleError(
        f"{store} is neither a finished cache nor the output of a run that has made one.",
        "Give <output>/cache/<fingerprint> or <output>; the cache stage has to be complete.",
    )
