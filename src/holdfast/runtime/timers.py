"""One timer structure for all the deadlines of a loop.

Entries sit in buckets of 1/64 s; a heap holds the keys of the buckets, and the loop holds one timer
for the earliest of them. To add or to remove an entry is a dictionary operation, whatever the
number of entries: a loop timer of its own for each would cost a heap operation that grows with it,
and on removal leave a dead handle behind. An entry never fires early: uvloop's timers may, by up to
a millisecond, so the clock is asked again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from holdfast.domain.instant import NEVER, Instant

__all__ = ["Alarm", "Entry", "Timers"]

_PER_SECOND: Final = 64
_STALE_KEYS: Final = 512


class Entry(Protocol):
    """What can be due. The earliest-added of equal entries comes first."""

    limit: Instant


class Alarm:
    """An entry that calls a function once."""

    __slots__ = ("call", "limit")

    def __init__(self, limit: Instant, call: Callable[[], object]) -> None:
        self.limit = limit
        self.call = call


class Timers:
    """The deadlines of one loop. Not safe across threads: it belongs to its loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], Instant],
        due: Callable[[Sequence[Entry], Instant], None],
    ) -> None:
        self._loop = loop
        self._now = now
        self._due = due
        self._buckets: dict[int, dict[Entry, None]] = {}
        self._keys: list[int] = []
        self._handle: asyncio.TimerHandle | None = None
        self._sweep_at = _STALE_KEYS
        self.next: Instant = NEVER

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, entry: Entry, at: Instant) -> None:
        """Make `entry` due at `at` (which must be its `limit` for as long as it is in here)."""
        key = int(at * _PER_SECOND)
        bucket = self._buckets.get(key)
        if bucket is None:
            self._open_bucket(key)[entry] = None
        else:
            bucket[entry] = None
        if at < self.next:
            self._arm(at)

    def discard(self, entry: Entry, at: Instant) -> None:
        """Forget `entry`, which was added for `at`. Does nothing when it is not here."""
        # The loop's own timer stays as it is: when it fires it finds nothing due and moves on. That
        # costs less than to cancel and set it at every scope.
        bucket = self._buckets.get(int(at * _PER_SECOND))
        if bucket is not None:
            bucket.pop(entry, None)

    def close(self) -> None:
        """Forget everything and leave no timer on the loop."""
        self._buckets.clear()
        self._keys.clear()
        self.next = NEVER
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _open_bucket(self, key: int) -> dict[Entry, None]:
        if len(self._keys) > self._sweep_at:
            self._sweep()
        bucket: dict[Entry, None] = {}
        self._buckets[key] = bucket
        heapq.heappush(self._keys, key)
        return bucket

    def _sweep(self) -> None:
        # Emptied buckets keep their key, so that a hot bucket is not pushed again and again. When
        # most are empty the list is made anew: a constant cost per bucket ever opened.
        live = {key: bucket for key, bucket in self._buckets.items() if bucket}
        if len(live) * 2 <= len(self._keys):
            self._buckets = live
            self._keys = sorted(live)
        self._sweep_at = max(_STALE_KEYS, 2 * len(self._keys))

    def _arm(self, at: Instant) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self.next = at
        self._handle = self._loop.call_later(max(0.0, at - self._now()), self._fire)

    def _fire(self) -> None:
        self._handle = None
        self.next = NEVER
        now = self._now()
        fired: list[Entry] = []
        while self._keys:
            key = self._keys[0]
            bucket = self._buckets[key]
            ready = [entry for entry in bucket if entry.limit <= now]
            for entry in ready:
                del bucket[entry]
            fired += ready
            if bucket:
                break
            heapq.heappop(self._keys)
            del self._buckets[key]
        try:
            if fired:
                self._due(fired, now)
        finally:
            self._arm_next()

    def _arm_next(self) -> None:
        # What was due may have added entries, and armed for them.
        while self._keys and not self._buckets[self._keys[0]]:
            del self._buckets[heapq.heappop(self._keys)]
        if self._keys:
            earliest = min(entry.limit for entry in self._buckets[self._keys[0]])
            if earliest < self.next:
                self._arm(earliest)
