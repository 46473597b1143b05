"""The first words of statements in SQL: what a text is about, without reading it as a server does.

What belongs here: finding words where comments, literals and quoted names are not taken for some.
Traps: comments of PostgreSQL nest; whoever writes a text decides how long it is, so all is done in
one pass, whose time is linear, and what stands after very many blanks and comments is not found.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["first_word"]

_CAP: Final = 65_536
"""Characters that are looked through for a first word."""
_BLANK: Final = re.compile(r"[ \t\n\r\f\v(;]*")
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_LINE_ENDS: Final = re.compile(r"[\n\r]")
_EDGE: Final = re.compile(r"/\*|\*/")


def first_word(sql: str) -> str:
    """The first word of `sql` in capitals, behind blanks, brackets and comments; empty without."""
    at, end = 0, min(len(sql), _CAP)
    while True:
        found = _BLANK.match(sql, at, end)
        at = found.end() if found else at
        if sql.startswith("--", at):
            at = _after_line(sql, at)
        elif sql.startswith("/*", at):
            at = _after_comment(sql, at)
        else:
            word = _WORD.match(sql, at) if at < end else None
            return word.group().upper() if word else ""


def _after_line(sql: str, at: int) -> int:
    found = _LINE_ENDS.search(sql, at)
    return found.end() if found else len(sql)


def _after_comment(sql: str, at: int) -> int:
    """Where the comment ends that begins at `at`; those in it have ends of their own."""
    depth = 0
    for edge in _EDGE.finditer(sql, at):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)
