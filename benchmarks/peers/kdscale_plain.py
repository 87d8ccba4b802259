"""kdscale's cache with `cache.pack: false`: ids stored as the codec packs them."""

from pathlib import Path

from benchmarks.peers import kdscale_cache
from benchmarks.peers.contract import Records
from benchmarks.peers.kdscale_cache import PACKAGES, RESUME, open_loader

__all__ = ["PACKAGES", "RESUME", "open_loader", "write"]


def write(records: Records, folder: Path) -> None:
    """Write the cache without entropy coding."""
    kdscale_cache.write(records, folder, packed=False)
