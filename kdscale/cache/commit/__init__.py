"""How a cache becomes complete exactly once: plan, writers' commits, manifests."""
