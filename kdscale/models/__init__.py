"""Build, load, shard and publish causal language models of transformers."""
