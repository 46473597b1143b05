"""Which records belong together, and when each one was on an axis that all of them share.

The monotonic clocks of one host have one origin, so instants of different processes on it can be
compared as they are. Where the wall clock says that an origin is another one (another host, or the
same one after it was booted), the wall clock joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Final

from holdfast.domain.instant import Duration, Instant
from holdfast.domain.record import Record

__all__ = ["Life", "Placed", "runs"]

_SAME_CLOCK: Final[Duration] = 5.0
"""Seconds by which a wall clock may be set while a process runs."""
_FARTHEST: Final = 1e12
"""Seconds from which on an instant is no instant; sums of smaller ones are always finite."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A record on the shared axis."""

    at: Instant
    record: Record


@dataclass(slots=True)
class Life:
    """The records of one process, in order. Never empty."""

    pid: int
    records: list[Placed] = field(default_factory=list[Placed])

    @property
    def began(self) -> Instant:
        """Its first record."""
        return self.records[0].at

    @property
    def ended(self) -> Instant:
        """Its last record."""
        return self.records[-1].at

    def has(self, *kinds: str) -> bool:
        """Whether something of the kind happened in it."""
        return any(placed.record.kind in kinds for placed in self.records)


def runs(records: Iterable[Record]) -> list[list[Life]]:
    """Processes that were there at the same time or took over from each other, oldest run first."""
    found: list[list[Life]] = []
    last = -_FARTHEST
    for life in sorted(_lives(records), key=attrgetter("began", "pid")):
        if not found or life.began > last:
            found.append([])
        found[-1].append(life)
        last = max(last, life.ended)
    return found


def _lives(records: Iterable[Record]) -> list[Life]:
    found: list[Life] = []
    for clock in _clocks(records):
        open_lives: dict[int, Life] = {}
        for placed in sorted(clock, key=attrgetter("at")):
            pid = placed.record.pid
            life = open_lives.get(pid)
            # A number is used again, by the next start of a container for one.
            again = placed.record.kind == "process.started" and life is not None
            if life is None or (again and life.has("process.started", "process.ended")):
                life = open_lives[pid] = Life(pid)
                found.append(life)
            life.records.append(placed)
    return found


def _clocks(records: Iterable[Record]) -> list[list[Placed]]:
    """The records by the origin of their clock."""
    known: list[tuple[float, Record]] = []
    unknown: list[Record] = []
    for record in records:
        if record.wall > 0:
            known.append((_near(record.wall) - _near(record.at), record))
        else:
            unknown.append(record)
    known.sort(key=itemgetter(0))
    groups: list[list[tuple[float, Record]]] = []
    before = 0.0
    for offset, record in known:
        if not groups or offset - before > _SAME_CLOCK:
            groups.append([])
        groups[-1].append((offset, record))
        before = offset
    return _placed(groups, unknown)


def _placed(
    groups: Sequence[Sequence[tuple[float, Record]]], unknown: Iterable[Record]
) -> list[list[Placed]]:
    if not groups:
        return [[Placed(_near(record.at), record) for record in unknown]]
    # Of most processes: the axis should be the one on which people think.
    offsets = [group[len(group) // 2][0] for group in groups]
    first = offsets[0]
    placed: list[list[Placed]] = []
    homes: dict[int, int] = {}
    for number, (group, offset) in enumerate(zip(groups, offsets, strict=True)):
        shift = offset - first
        placed.append([Placed(_near(record.at) + shift, record) for _, record in group])
        for _, record in group:
            homes.setdefault(record.pid, number)
    for record in unknown:
        home = homes.get(record.pid, 0)
        placed[home].append(Placed(_near(record.at) + offsets[home] - first, record))
    return placed


def _near(instant: float) -> float:
    return max(-_FARTHEST, min(_FARTHEST, instant))
