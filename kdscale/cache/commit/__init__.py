"""Commit protocol, which completes a cache exactly once: plan, commits, manifests."""
