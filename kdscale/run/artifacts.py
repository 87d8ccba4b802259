"""What the artefacts of a run are called: fingerprints from the config and from each other.

A fingerprint covers what an artefact depends on and leaves out how it was computed: worker counts,
micro-batches, ZeRO stages and intervals can change between attempts at the same artefact.
"""

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel

from kdscale.cache.codecs import make_codec
from kdscale.cache.spec import FORMAT
from kdscale.config import RunConfig, fingerprint
from kdscale.config.places import resolve_places
from kdscale.data.prepare import data_identity
from kdscale.data.rows.order import EvenRows
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import ModelReference, read_marker, source_identity
from kdscale.store import Fence, Store, open_store

OPERATIONAL = frozenset(
    {
        "workers",
        "capture",
        "micro_batch_size",
        "zero",
        "log_every",
        "activation_checkpointing",
        "checkpoint_every",
        "cache_memory_mib",
        "cache_disk_gib",
        "cache_folder",
        "prefetch_batches",
        "teacher_sharding",
        "teacher_offload",
        "baseline",
        "sequences_per_shard",
        "sequences_per_chunk",
        "pack",
        "reuse",
        "append_to",
    }
)

# What a student needs of a cache that another run made, and of several that are read as one.
NEEDED_OF_ROWS = ("task", "tokenizer", "vocab_size", "seq_len", "temperature")
NEEDED_OF_CACHES = ("format", *NEEDED_OF_ROWS)
NEEDED_OF_CACHE = ("teacher", *NEEDED_OF_CACHES)


class RunArtifacts:
    """A run's config, its output, and the names of what it makes."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.output: Store = open_store(config.output)
        # Where rows, teacher and cache are.
        self.source: Store = self.output if config.base is None else open_store(config.base)
        self.fence: Fence | None = None  # of the driver that holds the run

    @property
    def fingerprint(self) -> str:
        """Of the whole config."""
        return fingerprint(self.config.model_dump(mode="json"))

    @cached_property
    def prepare_fingerprint(self) -> str:
        """Of all rows. Raises KdscaleError where a corpus is missing."""
        return fingerprint("prepare", self._data, self._tokenizer_source)

    @property
    def rows_fingerprint(self) -> str:
        """Of the training rows alone: other evaluation sets leave teacher and cache as they are."""
        evaluation = {"evaluate", "evaluation_sequences", "evaluation_context"}
        config = {k: v for k, v in self._data["config"].items() if k not in evaluation}
        train = self._data["sources"]["train"]
        own = (self._data["format"], self._data["task"], config, train, self._tokenizer_source)
        files = [self._data[name] for name in ("synonyms", "chat_template") if name in self._data]
        return fingerprint("rows", *own, *files)

    @cached_property
    def _data(self) -> dict[str, Any]:
        return data_identity(self.config.data, self.config.task)

    @property
    def _tokenizer_source(self) -> dict[str, Any] | None:
        # A tokenizer trained here follows from the data; the teacher's own does not.
        own = self.config.data.tokenizer.kind == "teacher"
        return self._teacher_source if own else None

    @property
    def prepared_store(self) -> Store:
        """Where the rows are."""
        return self.source.child(f"prepared/{self.prepare_fingerprint}")

    @cached_property
    def prepared(self) -> Prepared:
        """The rows, once the stage is complete."""
        return open_prepared(self.prepared_store)

    @property
    def teacher_fingerprint(self) -> str:
        """Of the teacher: its source, or its recipe and data."""
        teacher = self.config.teacher
        source = None if teacher.load is None else self._teacher_source
        if teacher.training is None:
            return fingerprint("teacher", source)
        parts = (_recipe(teacher), self.rows_fingerprint, self.config.seed)
        return fingerprint("teacher", *parts, *([source] if source else []))

    @cached_property
    def _teacher_source(self) -> dict[str, Any]:
        teacher = self.config.teacher
        assert teacher.load is not None
        return source_identity(teacher.load, teacher.revision)

    def teacher(self) -> ModelReference:
        """The complete teacher; KdscaleError where the stage has not run."""
        return self._model("teacher", self.teacher_fingerprint)

    @cached_property
    def cache_identity(self) -> dict[str, Any]:
        """What the targets of a cache depend on, field by field; not which rows it has."""
        known = self.target_identity
        return {"format": FORMAT, "teacher": self.teacher().digest, **known}

    @property
    def target_identity(self) -> dict[str, Any]:
        """What is known of it before the teacher is there."""
        cache, prepared = self.config.cache, self.prepared
        classes = {"classes": list(prepared.classes)} if prepared.classes else {}
        return classes | {
            "task": self.config.task,
            "tokenizer": prepared.manifest["tokenizer"]["sha256"],
            "vocab_size": prepared.outputs,
            "seq_len": self.config.data.seq_len,
            "codec": make_codec(cache.codec, prepared.outputs).describe(),
            "temperature": cache.temperature,
            "dtype": "bfloat16" if cache.capture.workers.gpus else "float32",
            "seed": self.config.seed,
        }

    @cached_property
    def selected(self) -> EvenRows:
        """The training rows that the student learns from."""
        rows = len(self.prepared.training("cache"))
        return EvenRows(self.config.cache.sequences or rows, rows)

    @property
    def cache_needs(self) -> dict[str, Any]:
        """The fields that the reader must find: all of them, or of a reused cache what matters."""
        reuse = self.config.cache.reuse
        if reuse is None:
            return self.cache_identity
        needed = NEEDED_OF_CACHE if isinstance(reuse, str) else NEEDED_OF_CACHES
        return {name: self.cache_identity[name] for name in needed}

    @property
    def cache_fingerprint(self) -> str:
        """Of the rows and targets that the student learns from."""
        cache = self.config.cache
        elsewhere = cache.reuse if isinstance(cache.reuse, str) else cache.append_to
        mixed = [c.model_dump() for c in cache.reuse] if isinstance(cache.reuse, tuple) else None
        rows = (self.rows_fingerprint, len(self.selected))
        return fingerprint(self.cache_identity, *rows, elsewhere, mixed)

    @property
    def cache_stores(self) -> list[tuple[Store, float]]:
        """Where the cache is; several with their weights where the config mixes them."""
        cache = self.config.cache
        if isinstance(cache.reuse, tuple):
            return [(open_store(source.url), source.weight) for source in cache.reuse]
        elsewhere = cache.reuse or cache.append_to
        if elsewhere is not None:
            return [(open_store(elsewhere), 1.0)]
        return [(self.source.child(f"cache/{self.cache_fingerprint}"), 1.0)]

    def student_fingerprint(self, name: str) -> str:
        """Of `student` or `baseline`: the recipe, the cache and the seed."""
        recipe = _recipe(self.config.distill)
        return fingerprint(name, recipe, self.cache_fingerprint, self.config.seed)

    @property
    def student_names(self) -> list[Literal["student", "baseline"]]:
        """The models that the distill stage makes, in its order."""
        return ["student", "baseline"] if self.config.distill.baseline else ["student"]

    def student(self, name: str) -> ModelReference:
        """A complete `student` or `baseline`; KdscaleError where the stage has not run."""
        return self._model(name, self.student_fingerprint(name))

    @property
    def evaluate_fingerprint(self) -> str:
        """Of the results."""
        names = [self.student_fingerprint(name) for name in self.student_names]
        recipe = _recipe(self.config.evaluate)
        return fingerprint("evaluate", self.prepare_fingerprint, names, recipe, self.compared)

    @cached_property
    def compared(self) -> dict[str, dict[str, Any]]:
        """What tells the states of the other models that are evaluated apart. Raises KdscaleError
        where the folder of one is missing."""
        models = self.config.evaluate.models
        return {name: source_identity(source, None) for name, source in models.items()}

    def _model(self, name: str, expected: str) -> ModelReference:
        store = self.model_store(name)
        found = read_marker(store)
        if found is None or found.fingerprint != expected:
            stage = "teacher" if name == "teacher" else "distill"
            raise KdscaleError(
                f"The {name} of this config is not complete in {store}.",
                f"Run the stage first: kdscale run CONFIG --only {stage}.",
            )
        return found

    def model_store(self, name: str) -> Store:
        """Where `teacher`, `student` or `baseline` is."""
        return (self.source if name == "teacher" else self.output).child(name)


def resolve_paths(config: RunConfig) -> RunConfig:
    """Return the config with absolute paths, because Ray workers run in other folders."""
    output = open_store(config.output).url  # refuses what looks like a mistyped URL
    return resolve_places(config.model_copy(update={"output": output}))[0]


def _recipe(model: BaseModel) -> Any:
    """The model's content without operational fields, at any depth."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in OPERATIONAL}
        return value

    return strip(model.model_dump(mode="json"))
