"""Reference pages of the command line and of the configuration, generated from the code.

An mkdocs hook (see mkdocs.yml) adds them to the site when it is built, so they are always current.
To read one in a terminal:

    python docs/reference.py cli
    python docs/reference.py config
"""

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo

if typing.TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

sys.path.insert(0, str(Path(__file__).parent.parent))


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for name, text in (("cli", cli_page()), ("config", config_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def cli_page() -> str:
    """Return the page of all commands with their arguments and options."""
    from kdscale.cli import app

    intro = [
        "# Command line",
        "Every command prints this with `--help`. Errors are two lines, the problem and the fix, "
        "and exit with code 2; `KDSCALE_DEBUG=1` adds the traceback.",
    ]
    return "\n\n".join([*intro, *_commands(typer.main.get_command(app), "kdscale")]) + "\n"


def _commands(group: Any, name: str) -> Iterator[str]:
    for key, command in group.commands.items():
        if command.hidden:
            continue
        full = f"{name} {key}"
        if hasattr(command, "commands"):
            yield from _commands(command, full)
            continue
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        words = [_argument(each) for each in arguments]
        yield f"## {full}"
        yield f"```bash\n{' '.join([full, *words, '[OPTIONS]'])}\n```"
        yield _paragraphs(command.help)
        rows = [
            (_spelling(each), _cell(each.help or ""), _default(each))
            for each in command.params
            if not each.hidden and each.name != "help"
        ]
        if rows:
            yield _table(("argument or option", "meaning", "default"), rows)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper().rstrip(".")
    name += "..." if parameter.nargs == -1 else ""
    return name if parameter.required else f"[{name}]"


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`"
    names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
    return f"{names} (repeatable)" if parameter.multiple else names


def _default(parameter: Any) -> str:
    value = parameter.default
    shown = isinstance(value, str | int | float) and value not in (False, "")
    return f"`{value}`" if shown else "required" if parameter.required else ""


def config_page() -> str:
    """Return the page of all config models with the type, default and meaning of every field."""
    from kdscale.config import KubeOptions, RunConfig
    from kdscale.config.hardware import Hardware

    parts = [
        "# Configuration",
        "One YAML file describes a run; `--set a.b=value` overrides a field. Unknown keys are an "
        "error. `kdscale init run.yaml --teacher MODEL --data PATH` writes a short file that runs, "
        "`kdscale init --full run.yaml` one with every field. The file is a "
        "[RunConfig](#runconfig); each section has a table below.",
    ]
    places: dict[type, list[str]] = {}
    for root in (RunConfig, KubeOptions, Hardware):
        _collect(root, "", places)
    for model, paths in places.items():
        parts += [f"## {model.__name__}", _paragraphs(model.__doc__)]
        if any(paths):
            parts.append(f"Used as {', '.join(f'`{path}`' for path in paths)}.")
        rows = [
            (
                f"`{name}`",
                _type(field.annotation) + _bounds(field),
                _value(field),
                _cell(field.description or ""),
            )
            for name, field in model.model_fields.items()  # type: ignore[attr-defined]
        ]
        if rows:
            parts.append(_table(("field", "type", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _collect(model: type, path: str, places: dict[type, list[str]]) -> None:
    """Add `model` and the models of its fields to `places`, with the paths that lead to each."""
    if path in places.setdefault(model, []):
        return
    places[model].append(path)
    for name, field in model.model_fields.items():  # type: ignore[attr-defined]
        for each in _models(field.annotation):
            _collect(each, f"{path}.{name}" if path else name, places)


def _models(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    for each in typing.get_args(annotation):
        yield from _models(each)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(each) for each in arguments))
    if origin in (tuple, list, frozenset, set):
        return f"list of {' / '.join(dict.fromkeys(_type(a) for a in arguments if a is not ...))}"
    if origin is not None and arguments:  # a mapping
        return f"map of {_type(arguments[-1])}"
    if hasattr(annotation, "model_fields"):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}.get(
        getattr(annotation, "__name__", ""), "any"
    )


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(each, name)}"
        for each in field.metadata
        for name, sign in signs.items()
        if getattr(each, name, None) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _value(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if hasattr(value, "model_dump"):
        given = value.model_dump(exclude_defaults=True, mode="json")
        # The kind of a union's member is a default of that member, and needed to choose it.
        given = ({"kind": value.kind} if hasattr(value, "kind") else {}) | given
        return f"`{given}`".replace("'", "") if given else ""
    if value is None or isinstance(value, bool):
        return str(value).replace("None", "null").lower()
    return "" if value in ((), {}) else f"`{value}`".replace("'", "")


def _paragraphs(text: str | None) -> str:
    parts = (text or "").replace("\f", "").strip().split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print({"cli": cli_page, "config": config_page}[sys.argv[1]]())
