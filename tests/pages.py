"""The documents that people read: README, docs/ and their like, as the tests read them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
ALL_PAGES = (*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")))

_FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^\1```$", re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a page that are marked with `language`."""
    text = page.read_text(encoding="utf-8")
    return [body for _, marked, body in _FENCE.findall(text) if marked == language]


def prose(page: Path) -> str:
    """Return a page without its fenced code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(*pages: Path) -> Iterator[str]:
    """Yield the `kdscale` commands in the shell blocks of `pages`, without comments."""
    for page in pages:
        for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
            for command in re.split(r"\s+#", line.strip())[0].split(";"):
                if command.strip().startswith("kdscale "):
                    yield command.strip()
