"""What kind of statement a text is, as far as its first word and some others tell.

Trap: a text may hold several statements. The first word decides, as it is that one which may refuse
to run inside a transaction; where others follow they run in a transaction of their own anyway.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from holdfast.domain.wire.verbs import commands, first_word

__all__ = ["ORDINARY", "Kind", "kind_of"]

ORDINARY: Final[set[str]] = set()
"""Texts that are known to be of no special kind; to look here is all that most statements need."""
_MOST: Final = 1024
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
_LASTING: Final = frozenset(first for first, _ in _TWO_PHASES)
_BEGINS: Final = frozenset({"BEGIN", "START"})
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
        begins: it begins a transaction.
        keeps: milliseconds that the time-out is set to right after a reset, by us; 0 without.
        special: it is one of those that begin or end a transaction, or set something.
    """

    name: str
    data: bool = False
    commits: bool = False
    rolls_back: bool = False
    brief: bool = False
    resets: bool = False
    own: bool = False
    special: bool = False
    begins: bool = False
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
    name = first_word(query)
    lasting = name in _LASTING and next(commands(query))[:2] in _TWO_PHASES
    commits = name in _COMMITS or lasting
    begins = name in _BEGINS
    resets = _RESETS.search(query) is not None
    own = _OWN.search(query) is not None
    kept = _KEEPS.search(query) if resets else None
    rolls_back = name in _ROLLS_BACK and not lasting
    return Kind(
        name=name or "statement",
        data=name in _DATA,
        commits=commits,
        rolls_back=rolls_back,
        brief=commits or resets or name in _ENDS,
        resets=resets,
        own=own,
        special=begins or commits or rolls_back or resets or own,
        begins=begins,
        keeps=int(kept.group(1)) if kept else 0,
    )


_known: Final = lru_cache(maxsize=_MOST)(_look)
