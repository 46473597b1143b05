"""Instants and durations.

An *instant* is a number of seconds on a monotonic clock of unspecified origin; a *duration* is a
number of seconds. Both are plain floats: they are added and compared far too often to be wrapped.
`NEVER` is the deadline of work that has none.
"""

from __future__ import annotations

import math
import re
from typing import Final, TypeAlias

__all__ = ["NEVER", "Duration", "Instant", "format_duration", "parse_duration"]

Instant: TypeAlias = float
Duration: TypeAlias = float

NEVER: Final[Instant] = math.inf

_UNITS: Final = {
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|µs|ms|s|m|h|d)")
_WHOLE: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|µs|ms|s|m|h|d))+")


def parse_duration(value: str | float) -> Duration:
    """Seconds from `"30s"`, `"250ms"`, `"1m30s"`, `"2h"`, `"inf"`, or a number of seconds.

    Raises:
        ValueError: not a duration, negative, or not a number.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a duration; write for example '30s' or '250ms'")
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        text = value.strip().lower()
        if text in ("inf", "none", "never"):
            return NEVER
        if not _WHOLE.fullmatch(text):
            raise ValueError(f"{value!r} is not a duration; write for example '30s' or '250ms'")
        seconds = sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text))
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{value!r} is not a duration; it must not be negative")
    return seconds


def format_duration(seconds: Duration) -> str:
    """A duration for people: three significant digits and a unit, `"350 ms"`, `"1.2 s"`."""
    if math.isinf(seconds):
        return "no limit" if seconds > 0 else "-no limit"
    size = abs(seconds)
    for unit, scale, below in (("us", 1e6, 1e-3), ("ms", 1e3, 1.0), ("s", 1.0, 120.0)):
        # Rounded first: 999.96 ms is 1 s, and not 1e+03 ms.
        if float(f"{size:.3g}") < below:
            return f"{seconds * scale:.3g} {unit}"
    minutes, rest = divmod(round(size), 60)
    sign = "-" if seconds < 0 else ""
    return f"{sign}{minutes} min {rest} s"
