"""Back ends: data parallelism and DeepSpeed ZeRO behind one interface."""
