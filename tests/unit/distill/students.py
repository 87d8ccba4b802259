"""Students small enough for a unit test."""

from kdscale.models.head import ModelWithHead
from tests.small_llama import llama_config, strong_llama
from tests.unit.cache.planted import ROW_LENGTH, VOCAB


def make_student(seed: int) -> ModelWithHead:
    """Return a llama over the planted cache's vocabulary, far from uniform to tell rows apart."""
    return ModelWithHead(strong_llama(llama_config(VOCAB, ROW_LENGTH), seed), VOCAB)
