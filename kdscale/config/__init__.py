"""Frozen pydantic models, one module a room, and their way from YAML and overrides to a
fingerprint."""

from kdscale.config.kube import KubeOptions
from kdscale.config.load import (
    dump_config,
    fingerprint,
    load_config,
    load_kube_options,
    load_overrides,
    parse_config,
)
from kdscale.config.run import RunConfig

__all__ = [
    "KubeOptions",
    "RunConfig",
    "dump_config",
    "fingerprint",
    "load_config",
    "load_kube_options",
    "load_overrides",
    "parse_config",
]
