"""Frozen pydantic models, one module a room, and their way from YAML and overrides to a
fingerprint."""

from kdscale.config.load import dump_config, fingerprint, load_config, parse_config
from kdscale.config.run import RunConfig

__all__ = ["RunConfig", "dump_config", "fingerprint", "load_config", "parse_config"]
