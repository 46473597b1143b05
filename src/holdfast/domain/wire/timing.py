"""`Server-Timing`: what every hop spent, in one response header.

Source: W3C Server Timing (`name;dur=milliseconds;desc="text"`).

A hop puts its own name first, then its own phases, then the entries of the hops that it called,
each under a prefix: `orders;dur=120`, `orders.db;dur=30`, `orders.payments;dur=80`,
`orders.payments.db;dur=60`. So a name is a path, and the header of the edge is a tree. Where the
caps bite (32 entries, 2048 bytes), the deepest entries go first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from holdfast.domain.instant import Duration
from holdfast.domain.wire.budget import LONGEST

__all__ = [
    "TIMING_HEADER",
    "Timing",
    "format_timing",
    "hop_timing",
    "merge_timing",
    "parse_timing",
    "timing_prefix",
]

TIMING_HEADER: Final = "server-timing"

_ENTRIES: Final = 32
_BYTES: Final = 2048
_INPUT: Final = 8192
_NAME: Final = 128
_DESC: Final = 128
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9!#$%&'*+.^_`|~-]")
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_ENTRY: Final = re.compile(rf"(?:{_QUOTED}|[^,\"])+")
_PARAM: Final = re.compile(rf"(?:{_QUOTED}|[^;\"])+")
_ESCAPE: Final = re.compile(r"\\(.)")
_DURATION: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")


class Timing(NamedTuple):
    """One entry.

    Attributes:
        name: path of the hop or phase, joined by dots.
        seconds: how long it took; `None` when that was not said.
        desc: one line for people; may be empty.
    """

    name: str
    seconds: Duration | None = None
    desc: str = ""


def _name(text: str) -> str:
    return _FOREIGN.sub("_", text[:_NAME]) or "_"


def _desc(text: str) -> str:
    return "".join(c for c in text[:_DESC] if " " <= c <= "~" and c not in '"\\')


def _entry(timing: Timing) -> str:
    text = _name(timing.name)
    seconds = timing.seconds
    if seconds is not None and math.isfinite(seconds) and seconds >= 0:
        # Tenths of a microsecond; no exponent, which the grammar of some readers lacks.
        millis = f"{min(seconds, LONGEST) * 1000:.4f}".rstrip("0").rstrip(".")
        text += f";dur={millis}"
    if desc := _desc(timing.desc):
        text += f';desc="{desc}"'
    return text


def format_timing(timings: Iterable[Timing]) -> str:
    """The header value, at most 32 entries and 2048 bytes; empty when there is nothing to say.

    Characters that a name must not have become `_`. What does not fit is left out, from the first
    entry on that does not.
    """
    value = ""
    for index, timing in enumerate(timings):
        entry = _entry(timing)
        longer = f"{value}, {entry}" if value else entry
        if index == _ENTRIES or len(longer) > _BYTES:
            break
        value = longer
    return value


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return _ESCAPE.sub(r"\1", text[1:-1])
    return text


def parse_timing(raw: str | bytes) -> tuple[Timing, ...]:
    """The entries of a header, at most 32; several headers are one list: join them with commas.

    Never raises. Entries without a name are skipped, durations that are not plain numbers count as
    not said, the first of several equal parameters wins, unknown parameters are skipped.
    """
    text = raw[:_INPUT].decode("latin-1") if isinstance(raw, bytes) else raw[:_INPUT]
    found: list[Timing] = []
    for match in _ENTRY.finditer(text):
        first, *params = _PARAM.findall(match.group()) or [""]
        name = first.strip()
        if len(name) > _NAME or not _TOKEN.fullmatch(name):
            continue
        values: dict[str, str] = {}
        for param in params[:8]:
            key, _, value = param.partition("=")
            values.setdefault(key.strip().lower(), _unquoted(value.strip()))
        dur = values.get("dur", "")
        seconds = min(float(dur) / 1000, LONGEST) if _DURATION.fullmatch(dur) else None
        found.append(Timing(name, seconds, _desc(values.get("desc", ""))))
        if len(found) == _ENTRIES:
            break
    return tuple(found)


def merge_timing(
    hop: str, seconds: Duration, own: Iterable[Timing] = (), below: Iterable[Timing] = ()
) -> tuple[Timing, ...]:
    """The entries of this hop: itself, its phases, then the hops that it called, shallow first.

    Args:
        hop: name of this service.
        seconds: how long it worked.
        own: phases of this hop, named without a prefix, for example `db`.
        below: entries of the hops that it called, as `parse_timing` gives them.
    """
    prefix = _name(hop).replace(".", "-")
    under = [
        Timing(f"{prefix}.{timing.name}", timing.seconds, timing.desc) for timing in (*own, *below)
    ]
    under.sort(key=lambda timing: timing.name.count("."))
    return (Timing(prefix, seconds), *under)[:_ENTRIES]


_SHORT: Final = 1000
_MILLIS: Final = tuple(b"%.2f" % (hundredths / 100) for hundredths in range(_SHORT))
"""Milliseconds as they are written, by their hundredths: most requests take less than ten."""


def timing_prefix(hop: str) -> bytes:
    """What the `Server-Timing` of a hop begins with."""
    return format_timing([Timing(hop or "total", 0.0)]).encode("latin-1").removesuffix(b"0")


def hop_timing(
    hop: str, prefix: bytes, spent: Duration, below: Sequence[tuple[str, Duration]] = ()
) -> bytes:
    """The `Server-Timing` of a hop.

    Args:
        hop: its name.
        prefix: `timing_prefix` of that, made once.
        spent: seconds.
        below: names and seconds of what it learnt from hops below.
    """
    if not below:
        hundredths = int(spent * 1e5 + 0.5)
        if 0 <= hundredths < _SHORT:
            return prefix + _MILLIS[hundredths]
        return b"%b%.2f" % (prefix, spent * 1e3)
    entries = [Timing(name, seconds) for name, seconds in below]
    return format_timing(merge_timing(hop or "total", spent, below=entries)).encode("latin-1")
