"""What kind of statement a text is, as far as its first word and some others tell.

Trap: a text may hold several statements. The first word decides, as it is that one which may refuse
to run inside a transaction; where others follow they run in a transaction of their own anyway.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, NamedTuple

from holdfast.domain.wire.verbs import commands, first_word

__all__ = ["MAYBE", "ORDINARY", "Kind", "kind_of", "sets_by"]

ORDINARY: Final[set[str]] = set()
"""Texts that are known to be of no special kind; to look here is all that most statements need."""
_MOST: Final = 1024
_SETS: Final = re.compile(r"statement_timeout|set_config|\b(?:RESET|DISCARD)\b", re.IGNORECASE)
"""What all texts have that set the time-out; most have not."""
_KEEPS: Final = re.compile(r";\nSET statement_timeout = (\d+);\Z")
_KEPT: Final = 4096
"""Characters; what is longer is looked at each time, as it would be kept in memory."""
_ENDING: Final = re.compile(r"\b(?:COMMIT|END|ROLLBACK|ABORT)\b", re.IGNORECASE)
_CONFIG: Final = re.compile(r"""\bset_config"?\s*\(\s*(?:'([^']*)'|(\$))?""", re.IGNORECASE)
_OURS: Final = "statement_timeout"
_NO: Final = 0
MAYBE: Final = 1
"""It sets what its values say."""
_YES: Final = 2
_DATA: Final = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "TABLE", "WITH"}
)
_COMMITS: Final = frozenset({"COMMIT", "END"})
_TWO_PHASES: Final = frozenset(
    {("PREPARE", "TRANSACTION"), ("COMMIT", "PREPARED"), ("ROLLBACK", "PREPARED")}
)
_LASTING: Final = frozenset(first for first, _ in _TWO_PHASES)
_BEGINS: Final = frozenset({"BEGIN", "START"})
_SETS_BACK: Final = frozenset({"RESET", "DISCARD"})
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
        sets: whether it sets the time-out by hand: 0 for no, `MAYBE`, or 2, which may be wrong in
            unusual cases: to ask the server costs little, to rely on what is not so is bad.
        begins: it begins a transaction.
        ends: a transaction, or a part of one, ends in it.
        keeps: milliseconds that the time-out is set to right after a reset, by us; 0 without.
        special: it is one of those that begin or end a transaction, or set something.
    """

    name: str
    data: bool = False
    commits: bool = False
    rolls_back: bool = False
    brief: bool = False
    resets: bool = False
    sets: int = _NO
    special: bool = False
    begins: bool = False
    ends: bool = False
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
    resets, sets = _settings(query) if _SETS.search(query) else (False, _NO)
    kept = _KEEPS.search(query) if resets else None
    rolls_back = name in _ROLLS_BACK and not lasting
    ends = commits or rolls_back or (";" in query and _ends(query))
    return Kind(
        name=name or "statement",
        data=name in _DATA,
        commits=commits,
        rolls_back=rolls_back,
        brief=commits or resets or name in _ENDS,
        resets=resets,
        sets=sets,
        special=begins or ends or resets or sets > _NO,
        begins=begins,
        ends=ends,
        keeps=int(kept.group(1)) if kept else 0,
    )


def _ends(query: str) -> bool:
    if not _ENDING.search(query):
        return False
    return any(words[0] in _COMMITS or words[0] in _ROLLS_BACK for words in commands(query))


def _settings(query: str) -> tuple[bool, int]:
    """Whether it sets all back, at last; and whether it sets the time-out."""
    resets, sets = False, _NO
    kept = _KEEPS.search(query)
    for words in commands(query[: kept.start()] if kept else query):
        verb, rest = words[0], [word.strip('"').lower() for word in words[1:]]
        if verb in _SETS_BACK and "all" in rest[:1]:
            resets, sets = True, _NO
        elif verb == "SET" and rest[:1] in (["session"], ["local"]):
            sets = _YES if _OURS in rest[1:2] else sets
        elif verb in ("SET", "RESET"):
            sets = _YES if _OURS in rest[:1] else sets
        elif verb == "DO" and _OURS in query.lower():
            sets = _YES
    for name, value in _CONFIG.findall(query):
        if not name or name.strip().lower() == _OURS:
            sets = max(sets, MAYBE if value else _YES)
    return resets and sets == _NO, sets


def sets_by(kind: Kind, values: Any) -> Kind:
    """`kind`, where what it sets is among `values`."""
    if any(isinstance(value, str) and value.strip().lower() == _OURS for value in values):
        return kind
    return kind._replace(sets=_NO)


_known: Final = lru_cache(maxsize=_MOST)(_look)
