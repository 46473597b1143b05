"""Commands that wait at the server: how long each is to wait there, read and set in its arguments.

The server has to give up a little before we do. Else it may hand an element to a client that has
gone, and the element is lost: Redis takes it out of the list when it sends it, and knows no way to
give it back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from holdfast.domain.instant import Duration

__all__ = ["RULES", "SUBSCRIBES", "Waiting", "rule_for", "shortened"]

_LEAST: Final[Duration] = 0.001
"""Seconds. The smallest time-out that a server knows; zero means for ever."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How a command says how long it waits.

    Attributes:
        at: index of the time-out in the arguments, the command being the first; none when it does
            not wait.
        unit: seconds that a one there stands for.
        nothing: whether an answer of nothing says that the time-out has passed. `WAIT` answers with
            what it has got.
    """

    at: Callable[[tuple[Any, ...]], int | None]
    unit: Duration
    nothing: bool = True


def _last(args: tuple[Any, ...]) -> int | None:
    return len(args) - 1 if len(args) > 2 else None


def _first(args: tuple[Any, ...]) -> int | None:
    return 1 if len(args) > 2 else None


def _after_block(args: tuple[Any, ...], first: int = 1) -> int | None:
    """Of `XREAD`: what comes after `BLOCK`, which is in front of `STREAMS`."""
    for index, arg in enumerate(args[first:-1], first):
        word = arg.encode() if isinstance(arg, str) else arg
        if not isinstance(word, bytes):
            continue
        word = word.upper()
        if word == b"BLOCK":
            return index + 1
        if word == b"STREAMS":
            return None
    return None


def _after_group(args: tuple[Any, ...]) -> int | None:
    """Of `XREADGROUP`, where a group and a consumer may have any name: `GROUP block streams`."""
    return _after_block(args, 4)


SUBSCRIBES: Final = Waiting(lambda args: None, 1.0)
"""Of a command after which a connection gets messages, and is nobody else's any more."""
_SECONDS: Final = Waiting(_last, 1.0)
_SECONDS_FIRST: Final = Waiting(_first, 1.0)
_STREAMS: Final = Waiting(_after_block, 0.001)
_GROUPS: Final = Waiting(_after_group, 0.001)
_REPLICAS: Final = Waiting(_last, 0.001, nothing=False)

_NAMES: Final[dict[str, Waiting]] = {
    "BLMOVE": _SECONDS,
    "BLMPOP": _SECONDS_FIRST,
    "BLPOP": _SECONDS,
    "BRPOP": _SECONDS,
    "BRPOPLPUSH": _SECONDS,
    "BZMPOP": _SECONDS_FIRST,
    "BZPOPMAX": _SECONDS,
    "BZPOPMIN": _SECONDS,
    "PSUBSCRIBE": SUBSCRIBES,
    "SSUBSCRIBE": SUBSCRIBES,
    "SUBSCRIBE": SUBSCRIBES,
    "WAIT": _REPLICAS,
    "WAITAOF": _REPLICAS,
    "XREAD": _STREAMS,
    "XREADGROUP": _GROUPS,
}
RULES: Final[dict[Any, Waiting]] = {
    **_NAMES,
    **{name.encode(): rule for name, rule in _NAMES.items()},
}
"""By name in upper case."""


def rule_for(command: Any) -> Waiting | None:
    """How `command`, the first argument, says how long it waits; none when it does not wait."""
    try:
        return RULES.get(command.upper())
    except (AttributeError, TypeError):
        return None  # nothing that redis-py takes for a command


def shortened(
    rule: Waiting, args: tuple[Any, ...], left: Duration, margin: Duration
) -> tuple[tuple[Any, ...], Duration] | None:
    """The arguments with a shorter time-out, and that one in seconds; none when they may stay.

    Args:
        rule: of the command.
        args: the command and its arguments.
        left: seconds until the limit.
        margin: seconds that are kept for the answer; no more than half of what is left.
    """
    at = rule.at(args)
    if at is None:
        return None
    try:
        asked = float(args[at]) * rule.unit
    except (TypeError, ValueError):
        return None  # the server says what is wrong with it
    most = max(_LEAST, math.floor((left - min(margin, left / 2)) * 1000) / 1000)
    if not asked >= 0 or 0 < asked <= most:
        return None
    value: float | int = most if rule.unit == 1.0 else round(most * 1000)
    return (*args[:at], value, *args[at + 1 :]), most
