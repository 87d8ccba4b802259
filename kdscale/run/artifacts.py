"""Names and fingerprints of a run's artifacts, derived from its config and from each other.

A fingerprint covers all that an artifact depends on, and leaves out how it is computed: see
`kdscale.config.operational`.
"""

from functools import cached_property
from typing import Any, Literal

from kdscale.cache.codecs import make_codec
from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.commit.plan import selection_hash
from kdscale.cache.spec import FORMAT
from kdscale.config import RunConfig, fingerprint
from kdscale.config.operational import recipe
from kdscale.config.places import resolve_places
from kdscale.data.prepare import data_identity
from kdscale.data.rows.order import EvenRows
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distill.alignment.student_data import FOLDER, StudentTokenizer
from kdscale.distill.student_tokenizer import keep_own_tokenizer, tokenizer_identity
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import ModelReference, read_marker, source_identity
from kdscale.store import Fence, Store, open_store

# Fields of its identity that a student needs of a cache that another run made, and of several that
# are read as one.
NEEDED_OF_ROWS = ("task", "tokenizer", "vocab_size", "seq_len", "temperature")
NEEDED_OF_CACHES = ("format", *NEEDED_OF_ROWS)
NEEDED_OF_CACHE = ("teacher", *NEEDED_OF_CACHES)


class RunArtifacts:
    """A run's config, its output, and the names of its artifacts."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.output: Store = open_store(config.output)
        # The place of data, teacher and cache.
        self.source: Store = self.output if config.base is None else open_store(config.base)
        self.fence: Fence | None = None  # of the driver that has the run's lease

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the whole config."""
        return fingerprint(self.config.model_dump(mode="json"))

    @cached_property
    def prepare_fingerprint(self) -> str:
        """Fingerprint of all prepared data. Raises KdscaleError if a corpus is missing."""
        return fingerprint("prepare", self._data, self._tokenizer_source)

    @property
    def rows_fingerprint(self) -> str:
        """Fingerprint of the training data: the evaluation sets do not change teacher and cache."""
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
        if own and self.config.teacher.is_absent:
            return {"cache": self._reused_identity["tokenizer"]}
        return self._teacher_source if own else None

    @property
    def prepared_store(self) -> Store:
        """The store of the prepared data."""
        return self.source.child(f"prepared/{self.prepare_fingerprint}")

    @cached_property
    def prepared(self) -> Prepared:
        """The prepared data, once the stage is complete."""
        return open_prepared(self.prepared_store)

    @property
    def teacher_fingerprint(self) -> str:
        """Fingerprint of the teacher: of its source, or its recipe and data."""
        teacher = self.config.teacher
        if teacher.is_absent:
            return fingerprint("teacher", {"cache": self._reused_identity["teacher"]})
        source = None if teacher.load is None else self._teacher_source
        if teacher.training is None:
            return fingerprint("teacher", source)
        parts = (recipe(teacher), self.rows_fingerprint, self.config.seed)
        return fingerprint("teacher", *parts, *([source] if source else []))

    @cached_property
    def _reused_identity(self) -> dict[str, Any]:
        """The spec of the reused cache, the first of several."""
        return load_manifest(self.cache_stores[0][0]).identity

    @cached_property
    def _teacher_source(self) -> dict[str, Any]:
        teacher = self.config.teacher
        assert teacher.load is not None
        return source_identity(teacher.load, teacher.revision)

    def teacher(self) -> ModelReference:
        """Return the complete teacher. Raises KdscaleError if the stage has not run."""
        return self._model("teacher", self.teacher_fingerprint)

    def teacher_if_present(self) -> ModelReference | None:
        """Return the same; None where the run has no teacher."""
        return None if self.config.teacher.is_absent else self.teacher()

    @cached_property
    def cache_identity(self) -> dict[str, Any]:
        """All that the targets of a cache depend on, field by field; not which sequences it has."""
        known = self.target_identity
        teacher = self.teacher_if_present()
        digest = self._reused_identity["teacher"] if teacher is None else teacher.digest
        return {"format": FORMAT, "teacher": digest, **known}

    @property
    def target_identity(self) -> dict[str, Any]:
        """The fields of the cache's identity that are known before the teacher is complete."""
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
        """The training sequences that the student learns from."""
        rows = len(self.prepared.training("cache"))
        return EvenRows(self.config.cache.sequences or rows, rows)

    @property
    def selection_hash(self) -> str:
        """The name of the selection in the plan of a cache."""
        return selection_hash(self.selected.count, self.selected.total)

    @property
    def cache_needs(self) -> dict[str, Any]:
        """The fields that a reader must find: all, or of a reused cache those that matter."""
        reuse = self.config.cache.reuse
        if reuse is None:
            return self.cache_identity
        needed = NEEDED_OF_CACHE if isinstance(reuse, str) else NEEDED_OF_CACHES
        return {name: self.cache_identity[name] for name in needed}

    @property
    def cache_fingerprint(self) -> str:
        """Fingerprint of the sequences and targets that the student learns from."""
        cache = self.config.cache
        elsewhere = cache.reuse if isinstance(cache.reuse, str) else cache.append_to
        mixed = [c.model_dump() for c in cache.reuse] if isinstance(cache.reuse, tuple) else None
        rows = (self.rows_fingerprint, len(self.selected))
        return fingerprint(self.cache_identity, *rows, elsewhere, mixed)

    @property
    def cache_stores(self) -> list[tuple[Store, float]]:
        """The stores of the cache, with weights: several if the config mixes them."""
        cache = self.config.cache
        if isinstance(cache.reuse, tuple):
            return [(open_store(source.url), source.weight) for source in cache.reuse]
        elsewhere = cache.reuse or cache.append_to
        if elsewhere is not None:
            return [(open_store(elsewhere), 1.0)]
        return [(self.source.child(f"cache/{self.cache_fingerprint}"), 1.0)]

    def student_fingerprint(self, name: str) -> str:
        """Return the fingerprint of `student`, `baseline` or `before`.

        Of recipe, cache and seed, and of the state of the model that the student loads.
        """
        parts = (recipe(self.config.distill), self.cache_fingerprint, self.config.seed)
        own = [self._tokenizer_identity] if self.config.aligns else []
        return fingerprint(name, *parts, *([self._start] if self._start else []), *own)

    @cached_property
    def _tokenizer_identity(self) -> dict[str, Any]:
        return tokenizer_identity(self.config.distill.student)

    @cached_property
    def student_tokenizer(self) -> StudentTokenizer | None:
        """The student's own tokenizer, kept in the output; None where it has the teacher's.

        Its pair with the teacher's is there too, so that no worker has to build it. Raises
        KdscaleError where it cannot be loaded, or the two have nothing in common.
        """
        if not self.config.aligns:
            return None
        student, store = self.config.distill.student, self.output.child(FOLDER)
        found = keep_own_tokenizer(student, store, self.config.student_seq_len)
        found.build(self.prepared)
        return found

    @cached_property
    def _start(self) -> dict[str, Any] | None:
        student = self.config.distill.student
        if student.load is None:
            return None
        # A run writes the card beside its student again, whenever that is evaluated anew.
        return source_identity(student.load, student.revision, ignored=("README.md",))

    @property
    def student_names(self) -> list[Literal["student", "baseline"]]:
        """The models that the distill stage makes, in order."""
        return ["student", "baseline"] if self.config.distill.baseline else ["student"]

    @property
    def keeps_before(self) -> bool:
        """True if the student before training is kept, and evaluated: it was a model already."""
        return self.config.distill.student.load is not None

    @property
    def evaluated_names(self) -> list[str]:
        """The models of the distill stage that are evaluated, in order."""
        return [*self.student_names, *(["before"] if self.keeps_before else [])]

    def student(self, name: str) -> ModelReference:
        """Return a complete `student`, `baseline` or `before`.

        Raises KdscaleError if the stage has not run.
        """
        return self._model(name, self.student_fingerprint(name))

    @property
    def evaluate_fingerprint(self) -> str:
        """Fingerprint of the results."""
        names = [self.student_fingerprint(name) for name in self.student_names]
        parts = (names, recipe(self.config.evaluate), self.compared)
        return fingerprint("evaluate", self.prepare_fingerprint, *parts)

    @cached_property
    def compared(self) -> dict[str, dict[str, Any]]:
        """The sources of the other models that are evaluated, which tell their states apart.

        Raises:
            KdscaleError: The folder of one is missing.
        """
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
        """Return the store of `teacher`, `student`, `baseline` or `before`."""
        return (self.source if name == "teacher" else self.output).child(name)


def resolve_paths(config: RunConfig) -> RunConfig:
    """Return the config with absolute paths, because Ray workers run in other folders."""
    output = open_store(config.output).url  # refuses what looks like a mistyped URL
    return resolve_places(config.model_copy(update={"output": output}))[0]
