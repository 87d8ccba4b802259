"""Public Python API: caches, their loader, and the loss. `kdscale` itself exports its names."""
