"""What kind of statement a text is, as far as its first word and some others tell.

Trap: a text may hold several statements. The first word decides, as it is that one which may refuse
to run inside a transaction; where others follow they run in a transaction of their own anyway.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["ORDINARY", "Kind", "kind_of"]

ORDINARY: Final[set[str]] = set()
"""Texts that are known to be of no special kind; to look here is all that most statements need."""
_MOST: Final = 1024
_FIRST: Final = re.compile(r"(?:[\s(;]|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*([A-Za-z]+)", re.DOTALL)
_SECOND: Final = re.compile(r"\s+([A-Za-z]+)")
_RESETS: Final = re.compile(r"\b(?:RESET|DISCARD)\s+ALL\b", re.IGNORECASE)
_KEEPS: Final = re.compile(r";\nSET statement_timeout = (\d+);\Z")
_KEPT: Final = 4096
"""Characters; what is longer is looked at each time, as it would be kept in memory."""
_OWN: Final = re.compile(
    r"(?:\bSET\s+(?:(?:SESSION|LOCAL)\s+)?|set_config\s*\(\s*')statement_timeout", re.IGNORECASE
)
_DATA: Final = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "TABLE", "WITH"}
)
_COMMITS: Final = frozenset({"COMMIT", "END"})
_TWO_PHASES: Final = frozenset(
    {("PREPARE", "TRANSACTION"), ("COMMIT", "PREPARED"), ("ROLLBACK", "PREPARED")}
)
_ROLLS_BACK: Final = frozenset({"ROLLBACK", "ABORT"})
_ENDS: Final = frozenset({"RELEASE", "SAVEPOINT", "PREPARE"})


class Kind(NamedTuple):
    """What is to be known of a statement.

    Attributes:
        name: its first word, in capitals.
        data: it reads or changes rows, so it runs wherever another statement has run before.
        commits: it ends a transaction, or a part of one in two phases, and what it did lasts.
        rolls_back: it undoes, to the beginning or to a savepoint.
        brief: it may take a time that is longer than needed.
        resets: it sets all settings of the session back.
        own: it sets the time-out by hand.
        keeps: milliseconds that the time-out is set to right after a reset, by us; 0 without.
        special: it is one of those that end a transaction, or set something.
    """

    name: str
    data: bool
    commits: bool
    rolls_back: bool
    brief: bool
    resets: bool
    own: bool
    special: bool
    keeps: int = 0


def kind_of(query: str) -> Kind:
    """The kind of the statement `query`."""
    if len(query) > _KEPT:
        return _look(query)
    kind = _known(query)
    if not kind.special and query not in ORDINARY:
        if len(ORDINARY) >= _MOST:
            ORDINARY.clear()
        ORDINARY.add(query)
    return kind


def _look(query: str) -> Kind:
    found = _FIRST.match(query)
    name = found.group(1).upper() if found else "statement"
    second = _SECOND.match(query, found.end()) if found else None
    lasting = (name, second.group(1).upper() if second else "") in _TWO_PHASES
    commits = name in _COMMITS or lasting
    resets = _RESETS.search(query) is not None
    own = _OWN.search(query) is not None
    kept = _KEEPS.search(query) if resets else None
    rolls_back = name in _ROLLS_BACK and not lasting
    return Kind(
        name,
        name in _DATA,
        commits,
        rolls_back,
        commits or resets or name in _ENDS,
        resets,
        own,
        commits or rolls_back or resets or own,
        int(kept.group(1)) if kept else 0,
    )


_known: Final = lru_cache(maxsize=_MOST)(_look)
