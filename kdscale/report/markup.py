"""HTML and SVG built from calls, so that everything is escaped and balanced by construction.

A template that forgets one escape lets a run's name run as a script. Here only what `tag` made is
taken as markup; any other text is escaped on its way in.
"""

from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


VOID = frozenset({"br", "col", "hr", "link", "meta"})


def tag(name: str, /, *children: str | None, **attributes: object) -> Markup:
    """<name attributes>children</name>.

    Children that are not Markup are escaped; None is left out, as a child and as an attribute.
    In attribute names a trailing underscore is dropped and the others become hyphens (`class_`,
    `stroke_width`).
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        assert not children, f"<{name}> takes no children"
        return Markup(f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """The children one after the other, escaped like those of `tag`."""
    return Markup("".join(_text(child) for child in children if child is not None))


def _text(child: str) -> str:
    return child if isinstance(child, Markup) else escape(child)
