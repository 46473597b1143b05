"""What each signal means to the process, and which of several comes first.

Rule 1. A signal means one thing: stop, dump the stacks and exit, reload, dump the stacks and go on,
        or nothing. Whoever reacts looks at the meaning, never at the number.
Rule 2. When several wait, the one that leaves least to do afterwards comes first: an exit at once,
        then a stop, then a reload, then a dump, and what means nothing last. A reload of a process
        that is about to end is wasted and may hold it up; a dump changes nothing, so it can wait.
        The kernel has an order of its own, by number, in which HUP comes before everything else.
Rule 3. Among equals the order in which they were told stays: what came first is the first stop, and
        what came next is the one that forces it.

Signals are named here as the system names them, `SIGTERM`: a number differs from one system to the
next, and what reads numbers is in `runtime.signals`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

__all__ = [
    "DEFAULT_MEANINGS",
    "Meaning",
    "Meanings",
    "by_priority",
    "canonical",
    "meanings",
    "priority",
]

_T = TypeVar("_T")


class Meaning(StrEnum):
    """What a signal asks of the process."""

    STOP = "stop"
    """End gracefully; asked again, force it."""
    DUMP_AND_EXIT = "dump_and_exit"
    """Write the stacks of all tasks and threads, and exit at once, whatever the state."""
    RELOAD = "reload"
    """Read the configuration again and go on serving."""
    DUMP = "dump"
    """Write the stacks and go on."""
    IGNORE = "ignore"
    """Nothing; it is recorded, no more."""


Meanings: TypeAlias = Mapping[str, Meaning]
"""Meaning by name of the signal, for example `SIGTERM`. What is not listed is not taken."""

DEFAULT_MEANINGS: Final[Meanings] = MappingProxyType(
    {
        "SIGTERM": Meaning.STOP,
        "SIGINT": Meaning.STOP,
        "SIGQUIT": Meaning.DUMP_AND_EXIT,
        "SIGHUP": Meaning.RELOAD,
        "SIGUSR1": Meaning.DUMP,
    }
)

_RANKS: Final = {
    Meaning.DUMP_AND_EXIT: 0,
    Meaning.STOP: 1,
    Meaning.RELOAD: 2,
    Meaning.DUMP: 3,
    Meaning.IGNORE: 4,
}
_QUITS: Final = {"dump": Meaning.DUMP_AND_EXIT, "stop": Meaning.STOP}


def canonical(name: str) -> str:
    """The name of a signal as the system writes it: `term` and `Sigterm` are `SIGTERM`."""
    upper = name.strip().upper()
    return upper if upper.startswith("SIG") else f"SIG{upper}"


def meanings(changes: Mapping[str, Meaning | str] | None = None, quit: str = "dump") -> Meanings:
    """The default meanings with what is different here.

    Args:
        changes: meaning by name of the signal; names without `SIG` and in small letters will do.
        quit: `dump`, or `stop` for images whose stop signal is QUIT, as that of nginx is.

    Raises:
        ValueError: there is no such meaning; the text names those that there are.
    """
    if quit not in _QUITS:
        raise ValueError(f"QUIT can mean 'dump' or 'stop', not {quit!r}")
    found = {**DEFAULT_MEANINGS, "SIGQUIT": _QUITS[quit]}
    for name, meaning in (changes or {}).items():
        try:
            found[canonical(name)] = Meaning(meaning)
        except ValueError:
            known = ", ".join(Meaning)
            text = f"{meaning!r} is not a meaning of {canonical(name)}; there are {known}"
            raise ValueError(text) from None
    return MappingProxyType(found)


def priority(name: str, meanings: Meanings = DEFAULT_MEANINGS) -> int:
    """Rank of a signal among those that wait: 0 comes first. One without a meaning is last."""
    return _RANKS[meanings.get(canonical(name), Meaning.IGNORE)]


def _itself(name: object) -> str:
    return str(name)


def by_priority(
    waiting: Iterable[_T],
    meanings: Meanings = DEFAULT_MEANINGS,
    name: Callable[[_T], str] = _itself,
) -> tuple[_T, ...]:
    """What waits, in the order in which it is handed out (rules 2 and 3).

    Args:
        waiting: names of signals, or things that have one, in the order in which they were told.
        meanings: what the signals mean.
        name: tells the name of one of them.
    """
    return tuple(sorted(waiting, key=lambda one: priority(name(one), meanings)))
