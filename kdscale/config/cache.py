"""Config of the logit cache: which sequences, which codec, which size of shard."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config, Place, Temperature
from kdscale.config.operational import Operational
from kdscale.config.teacher import CaptureConfig


class FullCodec(Config):
    """All V log-probabilities in float16: for tests and small vocabularies."""

    kind: Literal["full"] = "full"


class TopkCodec(Config):
    """The K largest probabilities and a ghost bucket for the rest: biased, for comparison."""

    kind: Literal["topk"] = "topk"

    k: int = Field(default=50, ge=1)
    """Ids kept at a position."""

    value_bits: Literal[8, 16] = 16
    """Bits of a log-probability: float16, or steps of 1/16 nat in 8."""


class SampleCodec(Config):
    """Independent draws (Random-Sampling KD, arXiv 2503.16870): unbiased, as in the paper."""

    kind: Literal["sample"] = "sample"

    draws: int = Field(default=50, ge=1)
    """Draws of a position, with replacement; each is stored as an id."""

    tau: float = Field(default=1.0, gt=0)
    """Draw from p^tau. Other than 1, every draw also stores its importance weight, and a target
    sums to 1 on average only."""


class VaroptCodec(Config):
    """Threshold sampling: unbiased, sums to 1, the least variance that K ids allow."""

    kind: Literal["varopt"] = "varopt"

    k: int = Field(default=16, ge=2)
    """Ids kept at a position."""

    head: int = Field(default=2, ge=1)
    """At most so many of them keep their own probability; the others share one weight."""

    head_bits: Literal[8, 16] = 8
    """Bits of such a probability, rounded stochastically so that its mean is exact."""

    @model_validator(mode="after")
    def _head_below_k(self) -> "VaroptCodec":
        if self.head >= self.k:
            raise ValueError(f"head {self.head} must be below k {self.k}")
        return self


CodecConfig = Annotated[
    FullCodec | TopkCodec | SampleCodec | VaroptCodec, Field(discriminator="kind")
]


class ReusedCache(Config):
    """A finished cache to distil from."""

    url: Place
    """Folder or URL of the cache (`<output>/cache/<fingerprint>`)."""

    weight: float = Field(default=1.0, gt=0)
    """Times that an epoch has each of its sequences: 2 is twice, 0.5 an evenly spread half of
    them."""


class CacheConfig(Config):
    """The logit cache: its codec, its sequences, how it is captured."""

    codec: CodecConfig = VaroptCodec()
    """Codec of a position's distribution: `full`, `topk`, `sample` or `varopt`."""

    temperature: Temperature = 1.0
    """Teacher logits are divided by this before the softmax. A cache is made at one temperature."""

    reuse: Operational[Place | tuple[ReusedCache, ...] | None] = None
    """Folder or URL of a finished cache (`<output>/cache/<fingerprint>`) to distil from, or several
    of them with weights, read as one; nothing is captured then. One is refused where its tokenizer,
    vocabulary, row length or temperature is not this run's, and a single one also where its teacher
    is not."""

    append_to: Operational[Place | None] = None
    """Folder or URL of a finished cache of the same teacher, tokenizer, codec and seed: those of
    this run's rows that it lacks are captured into it, as its next version, and the student learns
    from all of them."""

    sequences: int | None = Field(default=None, gt=0)
    """Capture so many training sequences, evenly spread over the corpus; all when not given."""

    sequences_per_shard: Operational[int] = Field(default=512, gt=0)
    """Sequences of a shard, which one worker captures and commits at a time. Aim at 64 MiB."""

    sequences_per_chunk: Operational[int] = Field(default=64, gt=0)
    """Sequences of a chunk, which a reader fetches and verifies at a time. Aim at 1 to 4 MiB."""

    pack: Operational[bool] = True
    """Store the ids of codecs that sample as their ranks under the text's own statistics, entropy
    coded: about 40 % fewer bytes, unpacked once when a chunk is read. False stores them as they
    are."""

    capture: Operational[CaptureConfig] = CaptureConfig()

    @model_validator(mode="after")
    def _one_source(self) -> "CacheConfig":
        if self.reuse is not None and self.append_to is not None:
            raise ValueError("give either `reuse` or `append_to`")
        if self.reuse == ():
            raise ValueError("`reuse` names no cache")
        return self
