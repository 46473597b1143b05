"""HTML that cannot be anything else than what is meant: whatever is not `Markup` is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

from holdfast.apps.timeline.words import clean

__all__ = ["Markup", "joined", "tag"]

_VOID = frozenset({"meta", "path", "line", "br"})


class Markup(str):
    """A text that is HTML already. Made by `tag` and `joined`; else only from literals."""

    __slots__ = ()


def tag(name: str, *inside: str, **attributes: str) -> Markup:
    """An element.

    Args:
        name: of the element.
        inside: what is in it; plain text is escaped.
        attributes: of it; `class_` stands for `class`, `aria_label` for `aria-label`.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{joined([value])}"'
        for key, value in attributes.items()
        if value
    )
    if name in _VOID:
        return Markup(f"<{name}{words}>" if name in ("meta", "br") else f"<{name}{words}/>")
    return Markup(f"<{name}{words}>{joined(inside)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Elements and texts, one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    return html.escape(clean(text), quote=True)
