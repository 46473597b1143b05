"""What kind of statement a text is, as far as bounds are concerned.

Trap: a text may hold several statements, and values may stand in parameters. So what is found here
must do no harm where it is wrong: a server is asked what is in force, nothing is concluded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from holdfast.domain.wire.verbs import first_word

__all__ = ["Kind", "kind_of"]

_UNDOES: Final = frozenset({"ROLLBACK", "ABORT"})
_SETS: Final = frozenset({"SET", "RESET"})
_RESETS: Final = frozenset({"RESET", "DISCARD"})
_LONG: Final = 4096
"""Characters from which on a statement is not worth remembering."""


class Kind(NamedTuple):
    """What is to be known of a statement.

    Attributes:
        verb: its first word, in capitals; all of it that errors tell, as they go to others.
        undoes: it rolls back, to a savepoint perhaps.
        releases: it ends a savepoint, and what was done since stays.
        sets: it may set the time-out of statements by hand.
    """

    verb: str
    undoes: bool
    releases: bool
    sets: bool


def kind_of(statement: str) -> Kind:
    """The kind of `statement`."""
    return _look(statement) if len(statement) > _LONG else _known(statement)


def _look(statement: str) -> Kind:
    verb, said = first_word(statement), statement[: 2 * _LONG].upper()
    sets = "STATEMENT_TIMEOUT" in said and (verb in _SETS or "SET_CONFIG" in said)
    sets = sets or (verb in _RESETS and "ALL" in said)
    return Kind(verb or "statement", verb in _UNDOES, verb == "RELEASE", sets)


_known: Final = lru_cache(1024)(_look)
