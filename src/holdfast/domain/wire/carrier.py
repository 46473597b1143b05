"""Headers of what lies in a queue: when it was put there, and until when it is wanted.

The other headers are those of HTTP; `runtime.carry` writes and reads them together. A queue differs
from a call in two ways. What was sent may lie for hours, so what is left is only worth something
with the time at which that was said. And sender and receiver are often on one host, where an
instant of the monotonic clock means the same to both.

    holdfast-put-at   microseconds since the epoch, by the clock of the sender
    holdfast-until    the name of a monotonic clock, `;`, and nanoseconds on it

The traps: wall clocks of two hosts disagree, and one that is not set says 1970. See `waiting_time`
for what is believed. A monotonic instant of another clock is no error; it just says nothing here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple, cast

from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.wire.budget import LONGEST

__all__ = [
    "MOST_SKEW",
    "PUT_AT_HEADER",
    "UNTIL_HEADER",
    "Due",
    "due",
    "format_put_at",
    "format_until",
    "parse_put_at",
    "parse_until",
    "raw_pairs",
    "waiting_time",
]

PUT_AT_HEADER: Final = "holdfast-put-at"
UNTIL_HEADER: Final = "holdfast-until"

MOST_SKEW: Final[Duration] = 60.0
"""Seconds that the clock of a sender may be ahead. One that is further ahead is not believed."""

_MOST_PAIRS: Final = 1000
_MICROS: Final = re.compile(rb"[0-9]{1,17}")
_UNTIL: Final = re.compile(rb"([!-:<-~]{1,96});([0-9]{1,19})")


def format_put_at(wall: float) -> str:
    """Seconds since the epoch, as whole microseconds, rounded down: so nothing gets more time."""
    return str(_floored(wall, 1_000_000))


def _floored(seconds: float, per: int) -> int:
    # The product may round up, and so may the quotient that the reader makes.
    n = max(0, math.floor(seconds * per))
    while n > 0 and n / per > seconds:
        n -= 1
    return n


def parse_put_at(raw: bytes) -> float | None:
    """Seconds since the epoch; `None` when it is malformed. Never raises."""
    text = raw.strip(b" \t") if len(raw) < 64 else b""
    return int(text) / 1_000_000 if _MICROS.fullmatch(text) else None


def format_until(clock: str, at: Instant) -> str:
    """A monotonic instant of the named clock, in whole nanoseconds, rounded down.

    Args:
        clock: 1 to 96 printable ASCII characters without `;`.
        at: finite and not negative.
    """
    return f"{clock};{_floored(at, 1_000_000_000)}"


def parse_until(raw: bytes) -> tuple[str, Instant] | None:
    """The name of the clock and the instant; `None` when it is malformed. Never raises."""
    match = _UNTIL.fullmatch(raw.strip(b" \t")) if len(raw) < 256 else None
    if match is None:
        return None
    return match[1].decode("ascii"), int(match[2]) / 1_000_000_000


def waiting_time(put_at: float | None, wall: float) -> tuple[Duration, bool]:
    """Seconds that something has waited, and whether that can be believed.

    A clock that is a little ahead makes it negative, which is taken for 0. One that is ahead by
    more than `MOST_SKEW`, or behind by ten years, is not set, and says nothing about the time.

    Args:
        put_at: seconds since the epoch by the clock of the sender; `None` when it did not say.
        wall: the same by the own clock, now.
    """
    if put_at is None:
        return 0.0, True
    waited = wall - put_at
    if -MOST_SKEW <= waited <= LONGEST:
        return max(0.0, waited), True
    return 0.0, False


class Due(NamedTuple):
    """When something from a queue is due.

    Attributes:
        at: monotonic instant; infinite without a deadline.
        waited: seconds that it lay in the queue; 0.0 where that is not known.
        promised: seconds that it was given when it was put there; infinite without a deadline.
        skewed: whether the clock of the sender was not believed.
        asked: monotonic instant that was asked for, whatever the cap.
    """

    at: Instant = NEVER
    waited: Duration = 0.0
    promised: Duration = NEVER
    skewed: bool = False
    asked: Instant = NEVER


def due(
    left: Duration | None,
    put_at: float | None,
    until: Instant | None,
    now: Instant,
    wall: float,
    cap: Duration = NEVER,
) -> Due:
    """What the headers together say.

    Args:
        left: seconds that were left when it was put; `None` without a deadline.
        put_at: seconds since the epoch at which it was put; `None` when that was not said.
        until: instant on the own monotonic clock; `None` when it was not said, or on another one.
        now: instant on that clock.
        wall: seconds since the epoch, now.
        cap: seconds from now on that are granted at most.
    """
    waited, believed = waiting_time(put_at, wall)
    promised = NEVER if left is None else left
    at = NEVER
    if until is not None:
        at = until
        if left is not None:
            # The clock that both share also says how long it waited, whatever the wall clocks say.
            waited, believed = max(0.0, left - (until - now)), True
            at = min(at, now + left)
    elif left is not None:
        at = now + left - waited
    return Due(min(at, now + cap), waited, promised, not believed, at)


def raw_pairs(carrier: object) -> tuple[list[tuple[bytes, bytes]], int]:
    """Headers in the form that codecs take (lower-case names, bytes), and how many were odd.

    Takes what brokers give: a mapping or pairs, of texts or bytes. Values of other types are passed
    over, for most brokers let applications put what they like there. Never raises, whatever
    comes. Beyond 1000 headers nothing is looked at.
    """
    if carrier is None:
        return [], 0
    try:
        given = cast("Mapping[Any, Any]", carrier)
        source: Iterable[Any] = given.items() if isinstance(carrier, Mapping) else iter(given)
        entries = list(islice(source, _MOST_PAIRS))
    except Exception:
        # An object of a stranger: whatever it raises, there is no header of ours in it.
        return [], 1
    found: list[tuple[bytes, bytes]] = []
    odd = 0
    for entry in entries:
        name, value = _pair(entry)
        if name is None:
            odd += 1
        elif isinstance(value, str):
            found.append((name, value.encode("latin-1", "replace")))
        elif isinstance(value, bytes | bytearray):
            found.append((name, bytes(value)))
    return found, odd


def _pair(entry: object) -> tuple[bytes | None, object]:
    if not isinstance(entry, tuple | list):
        return None, None
    parts = cast("list[object]", entry)
    return (_name(parts[0]), parts[1]) if len(parts) == 2 else (None, None)


def _name(name: object) -> bytes | None:
    if isinstance(name, str):
        return name.lower().encode("latin-1", "replace")
    return bytes(name).lower() if isinstance(name, bytes | bytearray) else None
