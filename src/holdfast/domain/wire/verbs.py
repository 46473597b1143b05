"""The first words of statements in SQL: what a text is about, without reading it as a server does.

What belongs here: finding words where comments, literals and quoted names are not taken for some.
Traps: comments of PostgreSQL nest; whoever writes a text decides how long it is, so all is done in
one pass, whose time is linear, and what stands after very many blanks and comments is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["commands", "first_word"]

_CAP: Final = 65_536
"""Characters that are looked through for a first word."""
_WORDS: Final = 8
"""Words and signs of each command that are told."""
_BLANK: Final = re.compile(r"[ \t\n\r\f\v(;]*")
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_LINE_ENDS: Final = re.compile(r"[\n\r]")
_EDGE: Final = re.compile(r"/\*|\*/")
# No piece can match in two ways, so nothing is tried twice.
_PIECE: Final = re.compile(
    r"""
      (?P<escaped>[eE]'(?:[^'\\]|\\.)*')
    | (?P<text>'[^']*')
    | (?P<name>"[^"]*")
    | (?P<line>--)
    | (?P<comment>/\*)
    | (?P<dollar>\$(?:[A-Za-z_]\w*)?\$)
    | (?P<word>[A-Za-z_][\w$]*|\$?\d+)
    | (?P<blank>[ \t\n\r\f\v]+)
    | (?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL,
)


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


def commands(sql: str) -> Iterator[tuple[str, ...]]:
    """The first words and signs of each command in `sql`, without blanks, brackets and comments.

    Words are in capitals, quoted names in quotes as they are, and literals in single quotes,
    whichever way they were quoted. Nothing is told of a command without a word.
    """
    told: list[str] = []
    at = 0
    while at < len(sql):
        piece = _PIECE.match(sql, at)
        if piece is None:  # cannot be: any sign is a piece
            break
        kind, text = piece.lastgroup, piece.group()
        at = piece.end()
        if kind == "line":
            at = _after_line(sql, at)
        elif kind == "comment":
            at = _after_comment(sql, at - 2)
        elif kind == "dollar":
            end = sql.find(text, at)
            end = end if end >= 0 else len(sql)
            told.append(f"'{sql[at:end]}'")
            at = end + len(text)
        elif text == ";":
            if told:
                yield tuple(told[:_WORDS])
            told = []
        elif kind == "word":
            told.append(text.upper())
        elif kind != "blank" and text not in "()":
            told.append(text[1:] if kind == "escaped" else text)
    if told:
        yield tuple(told[:_WORDS])


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
