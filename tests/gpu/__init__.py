"""CUDA as far as it can be checked without a GPU: on fake tensors, every operation on record."""
