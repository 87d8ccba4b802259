"""YAML and `--set a.b=c` to a resolved config, and a config to its fingerprint."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from kdscale.config.base import Config
from kdscale.config.kube import KubeOptions
from kdscale.config.renamed import new_name
from kdscale.config.run import RunConfig
from kdscale.config.suggest import suggest_field
from kdscale.config.text import read_text
from kdscale.errors import KdscaleError

Kind = TypeVar("Kind", bound=Config)

_STARTER = "write a starter config with `kdscale init`"
_KUBE_STARTER = "start from cluster/kuberay.yaml"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of the YAML file at `path`, after the overrides (`a.b=c`, c being YAML).

    Raises KdscaleError for a missing or malformed file, an unknown key, or a value out of range.
    """
    return parse_config(_read(path, _STARTER), overrides, origin=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), origin: str = "config") -> RunConfig:
    """Like `load_config`, from YAML text."""
    return _parse(RunConfig, text, overrides, origin, _STARTER)


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return `config` after the overrides. Raises KdscaleError as `load_config`."""
    tree = config.model_dump(mode="json")
    return _validate(RunConfig, tree, overrides, "config", _STARTER)


def load_kube_options(path: str | Path, overrides: Sequence[str] = ()) -> KubeOptions:
    """Return the Kubernetes cluster in the YAML file at `path`; raises as `load_config`."""
    return _parse(KubeOptions, _read(path, _KUBE_STARTER), overrides, str(path), _KUBE_STARTER)


def load_overrides(path: str | Path) -> list[str]:
    """Return the fields of a YAML file, a part of a config, as overrides `a.b=c`."""
    tree = parse_tree(_read(path, _STARTER), str(path))

    def fields(prefix: str, tree: dict[str, Any]) -> Iterator[str]:
        for name, value in tree.items():
            if isinstance(value, dict) and value:
                yield from fields(f"{prefix}{name}.", value)
            else:
                yield f"{prefix}{name}={json.dumps(value)}"

    return list(fields("", tree))


def dump_config(config: RunConfig) -> str:
    """YAML of all fields, defaults included; `parse_config` gives the same config back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def fingerprint(*parts: Any) -> str:
    """16 hex digits of the SHA-256 of the parts' canonical JSON."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _read(path: str | Path, starter: str) -> str:
    return read_text(path, "config", f"Check the path, or {starter}.")


def _parse(
    kind: type[Kind], text: str, overrides: Sequence[str], origin: str, starter: str
) -> Kind:
    """YAML text to a valid config of `kind`. `starter` says where a user finds a correct one."""
    return _validate(kind, parse_tree(text, origin, starter), overrides, origin, starter)


def _validate(
    kind: type[Kind], tree: dict[str, Any], overrides: Sequence[str], origin: str, starter: str
) -> Kind:
    """Return the config of a tree, which is changed, after the overrides."""
    for each in overrides:
        _apply(tree, each)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise KdscaleError(
            f"{origin} is not valid:\n{_explain(error, kind, overrides)}",
            f"Fix the reported fields, or {starter}.",
        ) from error


def parse_settings(kind: Any, value: Any, origin: str) -> Any:
    """Return `value` as the config type `kind`. Raises KdscaleError where it is not valid.

    `origin` names the value in the message.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise KdscaleError(
            f"{origin} is not valid:\n{_explain(error)}", "Fix the reported fields."
        ) from error


def parse_tree(text: str, origin: str, starter: str = _STARTER) -> dict[str, Any]:
    """Return the mapping that YAML text holds; the fields are not checked.

    Raises:
        KdscaleError: The text is not YAML, or holds no mapping. `starter` says where to find
            correct text.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise KdscaleError(
            f"{origin} is not valid YAML: {error}", "Fix the reported line."
        ) from error
    if not isinstance(tree, dict):
        raise KdscaleError(
            f"{origin} holds no mapping.", f"Write one field per line, or {starter}."
        )
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b=c` in the tree, in place."""
    key, equals, value = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise KdscaleError(
            f"The override {override!r} does not have the form a.b=value.",
            "Write for example --set distill.training.steps=100.",
        )
    for depth, name in enumerate(names[:-1], start=1):
        # A key set to null (or left out) is a section that this override opens.
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise KdscaleError(
                f"The override {override!r} goes through {'.'.join(names[:depth])!r}, a value.",
                "Name a field of a section.",
            )
    try:
        tree[names[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise KdscaleError(
            f"The value of the override {override!r} is not valid YAML: {error}",
            "Quote the value.",
        ) from error


def _explain(
    error: ValidationError, kind: type[Config] | None = None, overrides: Sequence[str] = ()
) -> str:
    """Return a line on each field that is wrong, with those of overrides marked."""
    lines = []
    given_here = [each.partition("=")[0].strip() for each in overrides]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part != "") or "(whole config)"
        if (renamed := new_name(where, item["input"])) is not None:
            lines.append(f"  {where}: {renamed}")
        elif item["type"] == "extra_forbidden":
            meant = suggest_field(kind, item["loc"]) if kind is not None else None
            marked = any(f"{key}.".startswith(f"{where}.") for key in given_here)
            hint = f"; did you mean {meant}?" if meant else ""
            lines.append(f"  {where}: unknown key{' (of --set)' if marked else ''}{hint}")
        else:
            given = "" if isinstance(item["input"], dict) else f" (given: {item['input']!r})"
            lines.append(f"  {where}: {item['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(lines)
