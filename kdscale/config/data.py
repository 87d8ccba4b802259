"""Config of the data: where text comes from and how it becomes sequences."""

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kdscale.config.augment import AugmentConfig
from kdscale.config.base import Config, Place, PlaceForm
from kdscale.config.chat import ChatConfig
from kdscale.config.cleaning import MOST_STEPS, CleaningStep, NearDuplicates

ChunkPooling = Literal["mean", "max", "attention"]

# An input is a document or a range of rows: a limit is known before anything is read.
_LISTED = ("python-stdlib", "python-docs", "text", "huggingface")


class SourceConfig(Config):
    """One source of documents."""

    kind: Literal["python-stdlib", "python-docs", "text", "jsonl", "csv", "parquet", "huggingface"]
    """`python-stdlib`: the interpreter's own library, a module a document; `python-docs`: Markdown,
    reStructuredText and long descriptions of the installed packages; `text`: a file a document."""

    path: Place | None = None
    """Folder, glob or fsspec URL for `text`, `jsonl`, `csv` and `parquet`; for `huggingface` the
    name of a data set, or a folder that `save_to_disk` wrote."""

    text_field: str = "text"
    """Column that holds the text, for `jsonl`, `csv`, `parquet` and `huggingface`."""

    subset: str | None = None
    """Configuration name of a Hugging Face data set."""

    split: str = "train"
    """Split of a Hugging Face data set."""

    limit: int | None = Field(default=None, gt=0)
    """Take only the first so many documents."""

    def place_form(self, field: str) -> PlaceForm:
        """Return what `field`, of the type Place, holds."""
        return "hub" if self.kind == "huggingface" else "path"

    @model_validator(mode="after")
    def _path_where_needed(self) -> "SourceConfig":
        built_in = self.kind.startswith("python-")
        if built_in and self.path is not None:
            raise ValueError(f"source {self.kind!r} is built in and takes no path")
        if not built_in and not self.path:
            raise ValueError(f"source {self.kind!r} needs `path`")
        return self


class WeightedSource(SourceConfig):
    """One source of a mixture."""

    weight: float = Field(default=1.0, gt=0)
    """Share of the mixture's text, in UTF-8 bytes, beside the weights of the other sources."""

    @model_validator(mode="after")
    def _limit_is_exact(self) -> "WeightedSource":
        if self.limit is not None and self.kind not in _LISTED:
            raise ValueError(f"`limit` of {self.kind!r} cannot stand in a mixture: use `weight`")
        return self


def _form_of(train: Any) -> str:
    return "mixture" if isinstance(train, list | tuple) else ""


Sources = Annotated[
    # The empty tag keeps `train.path` the name of the field in an error.
    Annotated[SourceConfig, Tag("")]
    | Annotated[Annotated[tuple[WeightedSource, ...], Field(min_length=1)], Tag("mixture")],
    Discriminator(_form_of),
]
"""One source, or a mixture of several."""


class TokenizerConfig(Config):
    """The tokenizer that teacher and student share."""

    kind: Literal["train", "teacher"] = "train"
    """`train`: a byte-level BPE trained on the training documents; `teacher`: the teacher's own."""

    vocab_size: int = Field(default=2048, ge=258)
    """Size of a trained vocabulary, the 256 bytes and the special token included."""

    sample_documents: int = Field(default=100_000, gt=0)
    """A tokenizer is trained on at most so many documents."""


class LabelsConfig(Config):
    """The classes of documents, for sequence classification."""

    field: str = "label"
    """Column that holds a document's class, a text or a number; empty where it is not known. Of
    `text` sources it is the folder that a file is in."""

    classes: tuple[str, ...] | None = None
    """The classes in the order of the model's logits; those of the training documents in
    alphabetical order, if not given. Spelling is compared without case and outer blanks."""

    aliases: dict[str, str] = {}
    """Other spellings, and the class that each of them means."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the training documents whose label is used, chosen by a hash of the document's name.
    The teacher and the baseline learn from these; the cache covers all."""

    balance: Literal["none", "weights"] = "none"
    """`weights`: a document's cross-entropy counts in inverse proportion to the frequency of its
    class among the labelled training documents, 1 on average."""

    @model_validator(mode="after")
    def _distinct(self) -> "LabelsConfig":
        if self.classes is not None and len({standard(name) for name in self.classes}) < max(
            2, len(self.classes)
        ):
            raise ValueError("`classes` needs two names or more, each different from the others")
        return self


def standard(name: str) -> str:
    """Return a class's name as it is compared: NFC, without outer blanks and case."""
    return unicodedata.normalize("NFC", name).strip().casefold()


class ChunksConfig(Config):
    """Classification of long documents, chunk by chunk."""

    length: int = Field(ge=8)
    """Tokens of a chunk; `data.seq_len` is a multiple of it."""

    pooling: ChunkPooling = "mean"
    """Pooling of the scores of a document's chunks: their `mean`, their `max`, or `attention`:
    a mean with weights that are trained."""


class MaskingConfig(Config):
    """Masking for a masked language model."""

    share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are targets. As for BERT (arXiv:1810.04805), of every ten of them
    eight become the mask token, one becomes another token and one stays."""

    copies: int = Field(default=1, ge=1)
    """Copies of each piece of text, with other tokens masked each time."""


class DataConfig(Config):
    """Data and the way from raw text to sequences of fixed length."""

    train: Sources = SourceConfig(kind="python-stdlib")
    """Documents to train on; `validation_share` of them are held out. A list of sources, each with
    a `weight`, is a mixture: of those that have more text than their share a part is left out."""

    validation_share: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents held out, chosen by a hash of the document's name."""

    evaluate: dict[str, SourceConfig] = {}
    """More evaluation sets by name (out-of-domain). `validation` is always there."""

    tokenizer: TokenizerConfig = TokenizerConfig()

    seq_len: int = Field(default=128, ge=8)
    """Tokens in a sequence (T)."""

    long_documents: Literal["split", "truncate", "drop", "hierarchical"] = "split"
    """Treatment of a document longer than a sequence. `drop`, for causal language models: it is
    left out. `hierarchical`, for classification: a sequence is several chunks of a document, see
    `chunks`; what is longer than all of them is truncated."""

    chunks: ChunksConfig | None = None
    """For `long_documents: hierarchical`."""

    chat: ChatConfig | None = None
    """Documents are conversations, for causal language models: {field: messages}, or {prompt: ...,
    completion: ...}. Only the assistant's answers are learned."""

    labels: LabelsConfig | None = None
    """Source of the classes, for the task sequence-classification."""

    masking: MaskingConfig = MaskingConfig()
    """Masking, for the task masked-lm."""

    overlap: int = Field(default=1, ge=1)
    """Tokens that a split document's sequences share. Only new tokens count in the loss; 1 is
    enough to predict every token once, more gives the first tokens of a sequence some context."""

    pack: bool = True
    """Pack short documents into one sequence, with attention kept inside each; for causal language
    models."""

    cleaning: tuple[CleaningStep, ...] = ()
    """Cleaning steps of every document, in this order, after line ends, control characters and
    trailing blanks are levelled: normalise, strip_markup, language, length, mask_pii and
    near_duplicates, which comes last wherever it stands. What each step did is counted."""

    augment: AugmentConfig | None = None
    """Varied copies of the training documents: {steps: [...], copies: n, of: [teacher, cache]},
    with the steps delete, swap, replace and crop. Evaluation sets have none."""

    min_characters: int = Field(default=32, ge=1)
    """Documents with fewer characters after cleaning are dropped (and counted)."""

    evaluation_sequences: int = Field(default=256, gt=0)
    """Sequences kept of each evaluation set, evenly spaced over it."""

    evaluation_context: int | None = Field(default=None, ge=1)
    """In place of `overlap` for the sequences of evaluation sets (a sliding window): every target
    has so many tokens of its document before it, or all there are. For causal language models."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> "DataConfig":
        if self.overlap >= self.seq_len:
            raise ValueError(f"overlap {self.overlap} must be below seq_len {self.seq_len}")
        if self.evaluation_overlap >= self.seq_len:
            raise ValueError(
                f"evaluation_context {self.evaluation_context} must be below seq_len {self.seq_len}"
            )
        if self.evaluation_context is not None and self.long_documents != "split":
            raise ValueError(
                "evaluation_context is of documents that are split, and long_documents is "
                f"'{self.long_documents}'"
            )
        if "validation" in self.evaluate:
            raise ValueError("`validation` is made from `train`: give the other set another name")
        if "augmented" in self.evaluate:
            raise ValueError("`augmented` is what `augment` makes: give the set another name")
        return self

    @property
    def evaluation_overlap(self) -> int:
        """Tokens that the rows of a split document share in evaluation sets."""
        return self.evaluation_context or self.overlap

    @property
    def sources(self) -> dict[str, tuple[SourceConfig, ...]]:
        """`train` and the evaluation sets, each with the sources that it is read from."""
        train = self.train if isinstance(self.train, tuple) else (self.train,)
        return {"train": train, **{name: (each,) for name, each in self.evaluate.items()}}

    @property
    def near_duplicates(self) -> NearDuplicates | None:
        """The step that removes near duplicates, if there is one."""
        found = [step for step in self.cleaning if isinstance(step, NearDuplicates)]
        return found[0] if found else None

    @model_validator(mode="after")
    def _one_way_of_duplicates(self) -> "DataConfig":
        if sum(isinstance(step, NearDuplicates) for step in self.cleaning) > 1:
            raise ValueError("`cleaning` has `near_duplicates` more than once")
        if len(self.cleaning) > MOST_STEPS:
            raise ValueError(f"`cleaning` has {len(self.cleaning)} steps: at most {MOST_STEPS}")
        return self

    @model_validator(mode="after")
    def _chunks_fit(self) -> "DataConfig":
        if (self.chunks is None) == (self.long_documents == "hierarchical"):
            raise ValueError("`chunks` and `long_documents: hierarchical` belong together")
        if self.chunks is not None and self.seq_len % self.chunks.length:
            raise ValueError(
                f"seq_len {self.seq_len} is no multiple of chunks.length {self.chunks.length}"
            )
        return self

    @model_validator(mode="after")
    def _conversations_fit(self) -> "DataConfig":
        if self.chat is None:
            return self
        if self.augment is not None:
            raise ValueError("`augment` varies plain text, and `chat` documents are conversations")
        for name, sources in self.sources.items():
            for source in sources:
                if source.kind not in ("jsonl", "csv", "parquet", "huggingface"):
                    raise ValueError(f"{name}: a source {source.kind!r} holds no conversations")
        return self
