"""Draw docs/images/imports.svg: the imports between kdscale's packages, from the CLI to the loss.

    python docs/import_graph.py

grimp reads the imports, Graphviz draws them (`apt-get install graphviz`). An arrow points from an
importer to what it imports; an arrow that a longer path implies is left out. Packages on the path
from the CLI to the fused loss are filled. Packages that import each other in a cycle are an error.
"""

import subprocess
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "imports.svg"
# Used by nearly every package; their arrows would hide all others.
OMITTED = {"errors", "share", "types", "utils", "__main__", ""}
# Drawn apart from the package that they lie in: cache.fidelity imports more than the cache does,
# and the modules that name and open a run's outputs are imported by what the pipeline runs.
APART = {
    "cache.fidelity": "cache.fidelity",
    "run.artifacts": "run (outputs)",
    "run.finished_run": "run (outputs)",
    "run.stage_names": "run (outputs)",
}
SPINE = {"cli", "run", "teacher", "distill", "train", "losses", "cache", "config", "data"}


def node(module: str) -> str:
    """Return the package that a module is drawn as."""
    name = module.removeprefix("kdscale").removeprefix(".")
    apart = APART.get(".".join(name.split(".")[:2]))
    return apart or name.split(".")[0]


def imports() -> tuple[Counter[str], set[tuple[str, str]]]:
    """Return the lines of each package, and the imports between packages."""
    graph = grimp.build_graph("kdscale", exclude_type_checking_imports=True)
    lines: Counter[str] = Counter()
    found = set()
    for module in graph.modules:
        path = ROOT / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        lines[node(module)] += len(file.read_text(encoding="utf-8").splitlines())
        for imported in graph.find_modules_directly_imported_by(module):
            found.add((node(module), node(imported)))
    for name in OMITTED:
        del lines[name]
    return lines, {(a, b) for a, b in found if a != b and not {a, b} & OMITTED}


def dot(lines: Counter[str], arrows: set[tuple[str, str]]) -> str:
    """Return the graph in Graphviz's language."""
    nodes = [
        f'"{name}" [label="{name}\\n{count:,} lines"'
        + (', style="filled,rounded", fillcolor="#cfe3ff"];' if name in SPINE else "];")
        for name, count in sorted(lines.items())
    ]
    head = (
        'digraph kdscale { rankdir=TB; bgcolor="white"; ranksep=0.4; nodesep=0.25; '
        'node [shape=box, style=rounded, fontname="Helvetica", fontsize=11]; '
        'edge [color="#667788", arrowsize=0.6];'
    )
    return "\n".join([head, *nodes, *(f'"{a}" -> "{b}";' for a, b in sorted(arrows)), "}"])


def main() -> None:
    """Write the picture."""
    lines, arrows = imports()
    # tred drops the arrows that a longer path implies, and reports cycles on stderr.
    reduced = subprocess.run(
        ["tred"], input=dot(lines, arrows), capture_output=True, text=True, check=True
    )
    PICTURE.parent.mkdir(exist_ok=True)
    command = ["dot", "-Tsvg", "-o", str(PICTURE)]
    subprocess.run(command, input=reduced.stdout, text=True, check=True)
    print(f"{PICTURE}: {len(lines)} packages, {len(arrows)} imports between them")
    if "cycle" in reduced.stderr:
        raise SystemExit(reduced.stderr)


if __name__ == "__main__":
    main()
