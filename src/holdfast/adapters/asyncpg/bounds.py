"""Which time-out the server has been told, and whether it still fits what is left.

The value is set anew only when the one that is there would end a statement too early, or later than
an eighth of what is left after its deadline. The client ends the statement at the deadline itself;
the server's time-out is for when the client cannot.

Trap: it holds for all that the connection sends, so for a rollback, and for what sets it anew too.
A server that is busy may need milliseconds for those, so there is a least value.
"""

from __future__ import annotations

import re
from math import ceil, inf
from typing import Final

from holdfast.domain.instant import Duration

__all__ = ["LEAST", "LONGEST", "SLACK", "fits", "milliseconds_of", "range_of", "rounded", "wish_of"]

LONGEST: Final = 2**31 - 1
"""Milliseconds; the most that the server takes. What is longer has no limit there."""
SLACK: Final = 8
"""The server's time-out is at most one part in so many, or `LEAST`, after the deadline."""
LEAST: Final = 100
"""Milliseconds; the server is never told less."""
_STEPS: Final = 6
_UNITS: Final = {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6, "d": 8.64e7}
_SETTING: Final = re.compile(r"(\d+)\s*([a-z]*)")


def wish_of(left: Duration, base: int) -> int:
    """Milliseconds that a statement may take with `left` seconds left; 0 for no limit.

    Args:
        left: seconds; infinite without a deadline.
        base: what the server has by itself, which holds where it is tighter; 0 for nothing.
    """
    if left * 1000.0 >= LONGEST:
        return base
    wish = max(LEAST, ceil(left * 1000.0))
    return base if base and base <= wish else wish


def fits(known: int, wish: int, *, brief: bool = False) -> bool:
    """Whether a time-out of `known` milliseconds will do for `wish`; 0 is no limit in both.

    Args:
        known: what is set.
        wish: what is wanted.
        brief: any that is long enough will do.
    """
    if brief:
        return known == 0 or (wish != 0 and known >= wish)
    if wish == 0 or known == 0:
        return known == wish
    return wish <= known <= wish + wish // SLACK + 1


def range_of(known: int, base: int) -> tuple[Duration, Duration]:
    """Seconds left, from and to, with which `known` fits for certain, whatever the statement is."""
    if known == base:
        return (base or LONGEST) / 1000.0, inf
    if fits(known, LEAST):
        return 0.0, known / 1000.0
    return ((known - 1) * SLACK // (SLACK + 1) + 1) / 1000.0, known / 1000.0


def rounded(wish: int, base: int) -> int:
    """A value for `wish` that will fit for a while: up to the next of 32 to 64 steps per octave."""
    if wish == base:
        return wish
    step = 1 << max(0, wish.bit_length() - _STEPS)
    value = min(-(-wish // step) * step, LONGEST)
    return min(value, base) if base else value


def milliseconds_of(setting: str) -> int:
    """Milliseconds of a setting as the server tells it: `0`, `500ms`, `2min`.

    Raises:
        ValueError: it is something else.
    """
    found = _SETTING.fullmatch(setting.strip())
    if found is None or found.group(2) not in _UNITS:
        raise ValueError(f"{setting!r} is not a time-out of PostgreSQL")
    return ceil(int(found.group(1)) * _UNITS[found.group(2)])
