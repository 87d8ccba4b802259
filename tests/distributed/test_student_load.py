"""The distill stage of a loaded student: published weights, losses, the student before training.

On one rank, on two, sharded, and resumed at another size.
"""


import pytest

pytestmark = pytest.mark.dist
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
