"""The one clock and the one source of randomness.

A loop may bring its own time: when it has a `monotonic` method (the virtual loop of
`holdfast.testing` does), scopes on it use that. `loop.time()` itself will not do, because uvloop
answers with the time at which the current iteration began, cut to milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from typing import Final, cast

from holdfast.domain.instant import Instant

__all__ = ["clock_of", "fresh_span_id", "fresh_trace_id", "monotonic", "wall"]

monotonic: Final[Callable[[], Instant]] = time.monotonic
"""The process clock: seconds since an unspecified origin, unmoved by changes of the wall clock."""

wall: Final[Callable[[], float]] = time.time
"""Seconds since the epoch, for people; never for measuring."""

_AT_A_TIME: Final = 64
_NO_TRACE_ID: Final = "0" * 32

_dice: Final = random.SystemRandom()


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], Instant]:
    """The clock that scopes on `loop` use."""
    own = getattr(loop, "monotonic", None)
    return cast("Callable[[], Instant]", own) if callable(own) else monotonic


def _seeded() -> Callable[[int], int]:
    # A private generator, seeded by the system: ids need to be unique, not secret, and one draw
    # costs a tenth of a read from the system.
    return random.Random(_dice.getrandbits(256)).getrandbits


_draw: Callable[[int], int] = _seeded()


_drawn: list[str] = []


def _reseed() -> None:
    # A forked child must not repeat the ids of its parent.
    global _draw
    _draw = _seeded()
    _drawn.clear()


os.register_at_fork(after_in_child=_reseed)


def fresh_trace_id() -> str:
    """A new trace id: 32 lower-case hex digits, never all zero."""
    # Every request has one. To draw and to write down many at a time costs a fifth.
    try:
        return _drawn.pop()
    except IndexError:
        digits = f"{_draw(128 * _AT_A_TIME):0{32 * _AT_A_TIME}x}"
        ids = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        first, *others = (found for found in ids if found != _NO_TRACE_ID)
        _drawn.extend(others)  # another thread may have taken them all before this one is back
        return first


def fresh_span_id() -> str:
    """A new span id: 16 lower-case hex digits, never all zero."""
    return "%016x" % (_draw(64) or 1)
