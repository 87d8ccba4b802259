"""Config of the logit cache: which rows, which codec, which size of unit."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config
from kdscale.config.teacher import CaptureConfig


class FullCodec(Config):
    """All V log-probabilities in float16: for tests and small vocabularies."""

    kind: Literal["full"] = "full"


class TopkCodec(Config):
    """The K largest probabilities and a ghost bucket for the rest: biased, for comparison."""

    kind: Literal["topk"] = "topk"

    k: int = Field(default=50, ge=1)
    """Ids kept at a position."""


class VaroptCodec(Config):
    """Threshold sampling: unbiased, sums to 1, the least variance that K ids allow."""

    kind: Literal["varopt"] = "varopt"

    k: int = Field(default=12, ge=2)
    """Ids kept at a position."""

    head: int = Field(default=4, ge=1)
    """At most so many of them keep their own probability; the others share one weight."""

    head_bits: Literal[8, 16] = 8
    """Bits of such a probability, rounded stochastically so that its mean is exact."""

    @model_validator(mode="after")
    def _head_below_k(self) -> "VaroptCodec":
        if self.head >= self.k:
            raise ValueError(f"head {self.head} must be below k {self.k}")
        return self


CodecConfig = Annotated[FullCodec | TopkCodec | VaroptCodec, Field(discriminator="kind")]


class CacheConfig(Config):
    """What the cache holds."""

    codec: CodecConfig = VaroptCodec()
    """How a position's distribution is kept: `full`, `topk` or `varopt`."""

    temperature: float = Field(default=1.0, gt=0)
    """Teacher logits are divided by this before the softmax. A cache is made at one temperature."""

    reuse: str | None = None
    """Folder or URL of a finished cache (`<output>/cache/<fingerprint>`) to distil from; nothing is
    captured then. It is refused where its teacher, tokenizer, vocabulary, row length or temperature
    is not this run's."""

    rows: int | None = Field(default=None, gt=0)
    """Capture so many training rows, evenly spread over the corpus; all of them when not given."""

    rows_per_unit: int = Field(default=512, gt=0)
    """Rows of a work unit: what one worker captures and commits at a time. Aim at 64 MiB."""

    rows_per_block: int = Field(default=64, gt=0)
    """Rows of a block: what a reader fetches and verifies at a time. Aim at 1 to 4 MiB."""

    capture: CaptureConfig = CaptureConfig()
