"""KubeRay's own schemas of its custom resources, as strict as the API server is.

The API server drops fields that a schema does not list without a word, which is how a misspelt one
goes unnoticed. Here they are refused. What is Kubernetes' own dialect becomes JSON Schema.
"""

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator, ValidationError
from jsonschema.validators import extend

DATA = Path(__file__).parent / "data" / "kuberay"

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
}


def check(manifest: dict[str, Any]) -> None:
    """ValidationError where the API server would refuse the manifest, or drop a part of it."""
    schema = _schema(manifest["kind"])
    Validator = extend(Draft7Validator, {"x-kubernetes-list-map-keys": _unique})
    Validator(schema).validate(manifest)


@cache
def _schema(kind: str) -> dict[str, Any]:
    data = gzip.decompress((DATA / f"{kind.lower()}s.json.gz").read_bytes())
    schema = _convert(json.loads(data))
    schema["properties"]["metadata"] = _METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _convert(node: Any) -> Any:
    """Turn a structural schema of Kubernetes into JSON Schema that refuses unknown fields."""
    if isinstance(node, list):
        return [_convert(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string") is True:
        text = {"type": "string"}
        if "pattern" in node:
            text["pattern"] = node["pattern"]
        return {"anyOf": [{"type": "integer"}, text]}
    converted = {name: _convert(value) for name, value in node.items()}
    # `properties` also is the name of a field somewhere: it is a keyword beside a type only.
    listed = isinstance(node.get("properties"), dict) and node.get("type") == "object"
    if listed and not node.get("x-kubernetes-preserve-unknown-fields"):
        converted.setdefault("additionalProperties", False)
    if node.get("nullable") is True:
        return {"anyOf": [{"type": "null"}, converted]}
    return converted


def _unique(
    validator: Any, keys: list[str], instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    """Check lists that are maps: no two items may have the same keys."""
    seen = [tuple(item.get(key) for key in keys) for item in instance]
    for entry in seen:
        if seen.count(entry) > 1:
            yield ValidationError(f"{entry} stands twice in a list that is a map")
