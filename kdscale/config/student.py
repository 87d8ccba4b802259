"""Config of the student: its shape, its losses, its training, its curriculum."""

from typing import Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config, Place, PlaceForm
from kdscale.config.curriculum import CurriculumConfig
from kdscale.config.initial import LayerSelection, WidthConfig
from kdscale.config.lora import LoraConfig
from kdscale.config.loss import LossConfig
from kdscale.config.online import OnlineConfig
from kdscale.config.operational import Later, Operational
from kdscale.config.teacher import ModelConfig
from kdscale.config.training import (
    AttentionChoice,
    TrainingConfig,
    WorkersConfig,
    check_teacher_group,
)

TokenizerChoice = Literal["teacher", "student"]


class StudentConfig(Config):
    """A start at random (`model`), from the teacher (`teacher_layers`) or a model in `load`."""

    model: ModelConfig | None = None
    """Architecture of a student that starts at random."""

    teacher_layers: LayerSelection | None = None
    """Layers of the teacher that the student starts from: a list of them in the student's order, or
    {kind: even, count: n} (evenly spaced, first and last among them), or {kind: ends, count: n}
    (half from the front, half from the back). Embeddings, norms and head are taken too."""

    load: Later[Place | None] = None
    """Hugging Face folder (local path or fsspec URL) or hub name of a model that the student starts
    from. Its tokenizer has to give the ids that the run's gives, but with `distill.tokenizer:
    student`. What it lacks for the run's task, such as a classifier's head, starts at random."""

    revision: Later[str | None] = None
    """Commit of a hub name in `load`; give it, so that the same config always means the same
    weights."""

    layers: Later[LayerSelection | None] = None
    """Layers of the model in `load`, in the forms of `teacher_layers`. All of them, if not
    given."""

    width: WidthConfig | None = None
    """Sizes smaller than those of the teacher, for a start from `teacher_layers`, or of the model
    in `load`: hidden_size, intermediate_size, num_attention_heads, num_key_value_heads; and
    calibration_sequences, the sequences on which its most active dimensions are found."""

    copy_embeddings: bool = False
    """Let a student of `model` start with the teacher's embeddings and head; both need the same
    hidden size."""

    tie_embeddings: bool | None = None
    """Tie the head to the embedding. As the architecture, the teacher or the model in `load` has
    it, if not given."""

    tokenizer: Later[Place | None] = None
    """Folder (local path or fsspec URL) or hub name of the student's own tokenizer, for
    `distill.tokenizer: student`; that of `load`, if not given. `kdscale data tokenizer` trains
    one."""

    lora: Later[LoraConfig | None] = None
    """Train adapters beside the linear maps of the student, whose own weights stay as they are:
    {r: 16, alpha: 32}. All weights are trained, if not given."""

    attention: Operational[AttentionChoice] = "auto"
    """Kernel of its attention, in training and evaluation; see teacher.attention."""

    def place_form(self, field: str) -> PlaceForm:
        """Return what `field`, of the type Place, holds."""
        return "hub"

    @model_validator(mode="after")
    def _one_start(self) -> "StudentConfig":
        if self.load is not None and self.teacher_layers is not None:
            raise ValueError(
                "`teacher_layers` are the teacher's: choose `layers` of the model in `load`"
            )
        if sum(each is not None for each in (self.model, self.teacher_layers, self.load)) != 1:
            raise ValueError("give either `model` or `teacher_layers`, or `load`")
        if self.load is None and (self.revision is not None or self.layers is not None):
            raise ValueError("`revision` and `layers` are those of the model in `load`: give it")
        for name in ("teacher_layers", "layers"):
            if getattr(self, name) == []:
                raise ValueError(f"`{name}` is empty")
        if self.model is None:
            if self.copy_embeddings:
                start = "`teacher_layers` take" if self.load is None else "`load` takes"
                raise ValueError(f"{start} the embeddings too: drop copy_embeddings")
        elif self.width is not None:
            raise ValueError(
                "`width` narrows a start from `teacher_layers` or `load`; `model` has its own"
            )
        elif self.tie_embeddings is not None and "tie_word_embeddings" in self.model.options:
            raise ValueError("give either tie_embeddings or model.options.tie_word_embeddings")
        return self

    @model_validator(mode="after")
    def _adapters_beside_trained_weights(self) -> "StudentConfig":
        if self.lora is not None and self.model is not None:
            raise ValueError(
                "`lora` leaves the student's weights as they are, and those of `model` start at "
                "random: start from `teacher_layers` or `load`, or drop lora"
            )
        return self

    @property
    def takes_from_teacher(self) -> bool:
        """True if the student's first weights need the teacher's files."""
        return self.teacher_layers is not None or self.copy_embeddings

    @property
    def tokenizer_source(self) -> str | None:
        """Place of the student's own tokenizer, if it has one."""
        return self.tokenizer or self.load


class DistillConfig(Config):
    """The distill stage: the student from its teacher, then the baseline from the labels alone."""

    student: StudentConfig

    targets: Literal["cache", "online"] = "cache"
    """Source of the teacher's distributions. The sequences, their order and their statistics are
    the cache's either way, so that both train on the same batches."""

    tokenizer: Later[TokenizerChoice] = "teacher"
    """Tokenizer of the student: the `teacher`'s, or the `student`'s own, which student.tokenizer or
    student.load has. The cached sequences are then tokenised again, and the student learns from the
    teacher wherever both tokenizers have a boundary, from the labels elsewhere."""

    seq_len: Later[int | None] = Field(default=None, ge=8)
    """Tokens in a sequence of a student with its own tokenizer, `data.seq_len` if not given. Text
    of a cached sequence that takes more of them is cut, and counted."""

    online: OnlineConfig = OnlineConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    curriculum: CurriculumConfig = CurriculumConfig()
    workers: Operational[WorkersConfig] = WorkersConfig()

    baseline: Operational[bool] = True
    """Train the baseline too: the same student, seed, order and steps on the labels alone."""

    cache_memory_mib: Operational[int] = Field(default=512, gt=0)
    """Memory for decoded cache chunks on a worker."""

    cache_disk_gib: Operational[float] = Field(default=32.0, ge=0)
    """Disk for decoded cache chunks on each machine, shared by its workers and kept for the next
    run; the least recently used go first. 0 reads every chunk from the store."""

    cache_folder: Operational[Place | None] = None
    """Folder of these chunks, best on a local NVMe disk. Default: in the folder for temporary
    files."""

    prefetch_batches: Operational[int] = Field(default=4, ge=1)
    """Batches read ahead of the training step."""

    def place_form(self, field: str) -> PlaceForm:
        """Return what `field`, of the type Place, holds."""
        return "node"

    @model_validator(mode="after")
    def _online_where_online(self) -> "DistillConfig":
        if self.targets == "cache" and self.online != OnlineConfig():
            raise ValueError("`online` says how an online teacher runs: set targets to `online`")
        return self

    @model_validator(mode="after")
    def _groups_are_equal(self) -> "DistillConfig":
        check_teacher_group(self.online.teacher_group, self.online.teacher_sharding, self.workers)
        return self

    @model_validator(mode="after")
    def _tokenizer_fits(self) -> "DistillConfig":
        student, kind = self.student, self.loss.divergence.kind
        if self.tokenizer == "teacher":
            if self.seq_len is not None or student.tokenizer is not None:
                raise ValueError(
                    "seq_len and student.tokenizer are of a student with its own tokenizer: set "
                    "tokenizer to `student`, or drop them"
                )
            return self
        if student.tokenizer_source is None:
            raise ValueError(
                "tokenizer `student` needs a student that has one: give student.tokenizer or "
                "student.load"
            )
        if student.takes_from_teacher:
            raise ValueError(
                "with tokenizer `student` the teacher's embeddings are of other ids: drop "
                "teacher_layers and copy_embeddings, and give student.load or student.model"
            )
        if self.targets == "online":
            raise ValueError("tokenizer `student` takes its targets from a cache: drop `online`")
        if kind != "forward_kl":
            raise ValueError(
                f"with tokenizer `student` targets are over classes of tokens, for the forward KL: "
                f"drop the divergence {kind!r}"
            )
        return self

    @model_validator(mode="after")
    def _taid_with_forward_kl(self) -> "DistillConfig":
        kind = self.loss.divergence.kind
        if self.online.taid is not None and kind != "forward_kl":
            raise ValueError(
                f"`online.taid` is a target of the forward KL: drop it, or the divergence {kind!r}"
            )
        return self
