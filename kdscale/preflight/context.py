"""Context of the checks: the run, the stages to make, facts known so far, findings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.config import RunConfig
from kdscale.data.rows.prepared import Prepared
from kdscale.models.init.plan import InitPlan
from kdscale.run.artifacts import RunArtifacts


@dataclass
class Findings:
    """Result of the checks: `notes` are sentences, `checked` names what was checked, in order."""

    notes: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def unseen(self, field_name: str, what: str) -> None:
        """Note that the config's `field_name`, which names `what`, is out of reach here."""
        self.note(
            f"{field_name} {what} cannot be seen from here: what depends on it is checked where "
            "the run starts."
        )

    @contextmanager
    def check(self, what: str) -> Iterator[None]:
        """Record `what` as checked if the block passes."""
        yield
        self.checked.append(what)


@dataclass(frozen=True)
class PreflightOptions:
    """Options of a check."""

    runs_elsewhere: bool = False
    """It will run on other machines: what cannot be reached from here is noted, not refused."""

    tokens: float | None = None
    """Tokens of training text, in place of a corpus that is not at hand."""

    teacher_shape: str | None = None
    """Folder with a config.json, in place of a teacher that is not at hand."""


DEFAULTS = PreflightOptions()


@dataclass(frozen=True)
class KnownData:
    """Facts that prepared data have, or are expected to have."""

    vocab_size: int
    classes: tuple[str, ...] = ()  # none also where they are not known yet
    special_ids: dict[str, int] = field(default_factory=dict)
    is_exact: bool = False
    """True if `vocab_size` is the tokenizer's; else it has at most so many ids."""

    tokenizer: Path | None = None  # folder, where it is at hand
    digest: str | None = None  # of its tokenizer.json, sha256

    @property
    def outputs(self) -> int:
        """Size of a distribution; the vocabulary where classes are not known yet."""
        return len(self.classes) or self.vocab_size


@dataclass
class Context:
    """One check of a run."""

    run: RunArtifacts
    stages: frozenset[str]  # that are to be made
    options: PreflightOptions
    findings: Findings
    scratch: Path
    prepared: Prepared | None = None
    data: KnownData | None = None  # None where nothing is known of the tokenizer
    student_data: KnownData | None = None  # of a student with its own tokenizer, where it is known
    teacher_source: str | None = None
    """Argument of `from_pretrained` for config and tokenizer of a teacher that exists."""

    teacher: Any | None = None  # of transformers; None where it is out of sight
    student_source: str | None = None
    """Argument of `from_pretrained` for config and tokenizer of a model that the student loads."""

    student: InitPlan | None = None

    @property
    def config(self) -> RunConfig:
        """Config of the run."""
        return self.run.config

    @property
    def teacher_weights(self) -> str | None:
        """Place of an existing teacher's files, if they can be read from here."""
        if self.teacher_source is None or self.options.teacher_shape is not None:
            return None
        load = self.config.teacher.load
        # The config and tokenizer of a remote one have been fetched; its weights have not.
        return load if load is not None and "://" in load else self.teacher_source

    @property
    def student_weights(self) -> str | None:
        """Place of the files of a model that the student loads, if they can be read from here."""
        if self.student_source is None:
            return None
        load = self.config.distill.student.load
        return load if load is not None and "://" in load else self.student_source

    def makes(self, *stages: str) -> bool:
        """Tell whether one of `stages` is to be made."""
        return not self.stages.isdisjoint(stages)
