"""Codecs: what the cache keeps of a teacher's distribution at one position. Pure tensor code."""

from typing import Any

from pydantic import TypeAdapter

from kdscale.cache.codecs.base import Codec, Encoded, SampledIds
from kdscale.cache.codecs.full import Full
from kdscale.cache.codecs.id_bytes import MAX_IDS
from kdscale.cache.codecs.noise import uniforms
from kdscale.cache.codecs.sample import Sample
from kdscale.cache.codecs.topk import Topk
from kdscale.cache.codecs.varopt import Varopt
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec
from kdscale.errors import KdscaleError

__all__ = ["Codec", "Encoded", "SampledIds", "make_codec", "open_codec", "uniforms"]


def make_codec(config: CodecConfig, vocab_size: int) -> Codec:
    """Return the codec of `config` over the ids 0 ..

    vocab_size - 1 (the tokenizer's, without padding).

    Raises KdscaleError where the vocabulary is too small for the ids asked for, or too large.
    """
    if vocab_size > MAX_IDS:
        raise KdscaleError(
            f"A vocabulary of {vocab_size} ids is larger than the {MAX_IDS} a codec takes.",
            "Check the tokenizer: no known language model has so many ids.",
        )
    if isinstance(config, FullCodec):
        return Full(vocab_size)
    if isinstance(config, SampleCodec):
        return Sample(config.draws, config.tau, vocab_size)
    if config.k > vocab_size:
        raise KdscaleError(
            f"cache.codec.k is {config.k}, but the vocabulary has only {vocab_size} ids.",
            f"Set cache.codec.k to at most {vocab_size}, or use the codec 'full'.",
        )
    if isinstance(config, TopkCodec):
        return Topk(config.k, config.value_bits, vocab_size)
    return Varopt(config.k, config.head, config.head_bits, vocab_size)


def open_codec(description: dict[str, Any]) -> Codec:
    """Return the codec that `description`, made by `Codec.describe`, speaks of."""
    fields = dict(description)
    vocab_size = fields.pop("vocab_size")
    adapter: TypeAdapter[CodecConfig] = TypeAdapter(CodecConfig)
    return make_codec(adapter.validate_python(fields), vocab_size)
