"""Models of transformers: loaded, checked, sharded, and run from token ids to logits."""
