"""Config of a run: frozen pydantic models, one module a package, from YAML and overrides."""

from kdscale.config.kube import KubeOptions
from kdscale.config.load import (
    dump_config,
    fingerprint,
    load_config,
    load_kube_options,
    load_overrides,
    override,
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
    "override",
    "parse_config",
]
