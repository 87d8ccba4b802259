"""Config of the data room: where text comes from and how it becomes rows."""

from typing import Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config


class SourceConfig(Config):
    """One source of documents."""

    kind: Literal["python-stdlib", "python-docs", "text", "jsonl", "parquet", "huggingface"]
    """`python-stdlib`: the interpreter's own library, a module a document; `python-docs`: Markdown,
    reStructuredText and long descriptions of the installed packages; `text`: a file a document."""

    path: str | None = None
    """Folder, glob or fsspec URL for `text`, `jsonl` and `parquet`; data set name for
    `huggingface`."""

    text_field: str = "text"
    """Column that holds the text, for `jsonl`, `parquet` and `huggingface`."""

    subset: str | None = None
    """Configuration name of a Hugging Face data set."""

    split: str = "train"
    """Split of a Hugging Face data set."""

    limit: int | None = Field(default=None, gt=0)
    """Take only the first so many documents."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> "SourceConfig":
        built_in = self.kind.startswith("python-")
        if built_in and self.path is not None:
            raise ValueError(f"source {self.kind!r} is built in and takes no path")
        if not built_in and not self.path:
            raise ValueError(f"source {self.kind!r} needs `path`")
        return self


class TokenizerConfig(Config):
    """The tokenizer that teacher and student share."""

    kind: Literal["train", "teacher"] = "train"
    """`train`: a byte-level BPE trained on the training documents; `teacher`: the teacher's own."""

    vocab_size: int = Field(default=2048, ge=258)
    """Size of a trained vocabulary, the 256 bytes and the special token included."""

    sample_documents: int = Field(default=100_000, gt=0)
    """A tokenizer is trained on at most so many documents."""


class DataConfig(Config):
    """From raw text to rows of fixed length."""

    train: SourceConfig = SourceConfig(kind="python-stdlib")
    """Documents to train on; `validation_share` of them are held out."""

    validation_share: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents held out, chosen by a hash of the document's name."""

    evaluate: dict[str, SourceConfig] = {}
    """More evaluation sets by name (out-of-domain). `validation` is always there."""

    tokenizer: TokenizerConfig = TokenizerConfig()

    row_length: int = Field(default=128, ge=8)
    """Tokens in a row (T)."""

    long_documents: Literal["split", "truncate"] = "split"
    """What happens to a document longer than a row."""

    overlap: int = Field(default=1, ge=1)
    """Tokens that a split document's rows share. Only new tokens count in the loss; 1 is enough to
    predict every token once, more gives the first tokens of a row some context."""

    pack: bool = True
    """Pack short documents into one row, with attention kept inside each."""

    min_characters: int = Field(default=32, ge=1)
    """Documents with fewer characters after cleaning are dropped (and counted)."""

    evaluation_rows: int = Field(default=256, gt=0)
    """Rows kept of each evaluation set, chosen evenly over it."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> "DataConfig":
        if self.overlap >= self.row_length:
            raise ValueError(f"overlap {self.overlap} must be below row_length {self.row_length}")
        if "validation" in self.evaluate:
            raise ValueError("`validation` is made from `train`: give the other set another name")
        return self
