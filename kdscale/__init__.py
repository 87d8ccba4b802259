"""kdscale distils large Transformers into small ones at cluster scale, from a cache of the
teacher's logits."""

__version__ = "0.1.0"
