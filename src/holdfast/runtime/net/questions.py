"""Questions under way and answers that are kept: one table for all loops and threads.

One question at a time goes out for a name and a type, however many wait for it. Who gives up does
not take the answer from the others: the question goes on, for whoever asks next.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from holdfast.domain.discovery.names import (
    Answer,
    CacheTerms,
    Found,
    Freshness,
    NameCache,
    NameStats,
)
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.ports.lookup import Lookup

__all__ = ["Flight", "Questions"]

_JOIN_FOR: Final[Duration] = 2.0
"""Seconds that later callers join a question. One that is older may have been lost, so a second one
goes out, and no third; not where it would take what names need that nobody was asked for yet."""

_AT_ONCE: Final = 2


class Flight:
    """A question under way, and who waits for it.

    Attributes:
        begun: when it went out.
        result: what came of it; none as long as it is under way.
        stale: what was known before, for the case that nobody answers.
    """

    __slots__ = ("begun", "result", "stale", "wakers")

    def __init__(self, begun: Instant, stale: Answer | None) -> None:
        self.begun = begun
        self.result: Answer | OSError | None = None
        self.stale = stale
        self.wakers: list[Callable[[], object]] = []

    @property
    def done(self) -> bool:
        """Whether something has come of it."""
        return self.result is not None

    @property
    def has_addresses(self) -> bool:
        """Whether an answer has come that somebody can connect to."""
        return isinstance(self.result, Answer) and bool(self.result.addresses)


class Questions:
    """The table.

    Args:
        lookup: who asks.
        terms: how long answers are kept.
        clock: of the answers' times to live.
        spare: whether there is room for second questions.
    """

    def __init__(
        self,
        lookup: Lookup,
        terms: CacheTerms,
        clock: Callable[[], Instant],
        spare: Callable[[], bool] = lambda: True,
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._spare = spare
        self._lock = threading.Lock()
        self._cache = NameCache(terms)
        self._flights: dict[tuple[str, str], list[Flight]] = {}
        self._stats = NameStats()

    def look(self, name: str, kinds: Sequence[str], ask: bool) -> tuple[list[Found], list[Flight]]:
        """What is known of a name, and the questions that have to be waited for.

        Args:
            name: as `canonical` makes it; with a dot at its end if it is complete.
            kinds: the types that are wanted.
            ask: whether there is time to ask for what is not known.
        """
        found: list[Found] = []
        flights: list[Flight] = []
        out: list[tuple[tuple[str, str], Flight]] = []
        with self._lock:
            now = self._clock()
            for kind in kinds:
                kept = self._cache.look(name, kind, now)
                usable = self._usable(kept)
                if kept is not None and usable:
                    found.append(kept)
                    if kept.freshness is Freshness.AGING and ask:
                        self._fly((name, kind), now, kept.answer, out)
                elif any(other.answer.addresses for other in found) and self._cache.silent(
                    name, kind, now
                ):
                    continue  # there are addresses, and for these nobody answers
                elif ask:
                    self._stats.misses += 1
                    stale = None if kept is None else kept.answer
                    flights.append(self._fly((name, kind), now, stale, out))
                elif kept is not None:
                    found.append(kept)
                    self._stats.stale += 1
        # Without the lock: who is asked may answer at once.
        for key, flight in out:
            landing = self._landing(key, flight)
            try:
                self._lookup.start(*key, landing)
            except (OSError, RuntimeError) as exc:
                # No thread, no socket: that is over when others have ended.
                landing(socket.gaierror(socket.EAI_AGAIN, f"could not ask for {key[0]!r}: {exc}"))
        return found, flights

    def _usable(self, kept: Found | None) -> bool:
        if kept is None:
            return False
        if kept.freshness is not Freshness.STALE:
            self._stats.hits += 1
            self._stats.negative_hits += not kept.answer.addresses
            return True
        if kept.hold:
            self._stats.stale += 1
        return kept.hold

    def _fly(
        self,
        key: tuple[str, str],
        now: Instant,
        stale: Answer | None,
        out: list[tuple[tuple[str, str], Flight]],
    ) -> Flight:
        under_way = self._flights.setdefault(key, [])
        if under_way and (
            now - under_way[-1].begun < _JOIN_FOR or len(under_way) >= _AT_ONCE or not self._spare()
        ):
            self._stats.shared += 1
            return under_way[-1]
        flight = Flight(now, stale)
        under_way.append(flight)
        self._stats.asked += 1
        out.append((key, flight))
        return flight

    def _landing(self, key: tuple[str, str], flight: Flight) -> Callable[[Answer | OSError], None]:
        return lambda result: self._landed(key, flight, result)

    def _landed(self, key: tuple[str, str], flight: Flight, result: Answer | OSError) -> None:
        with self._lock:
            if flight.done:
                return  # the other question for the same was answered before
            under_way = self._flights.pop(key, [])
            if isinstance(result, OSError):
                self._stats.failed += 1
                self._cache.failed(*key, self._clock())
                over = [flight]
            else:
                self._cache.store(*key, result, self._clock())
                over = under_way
            left = [other for other in under_way if other not in over]
            if left:
                self._flights[key] = left
            wakers = [wake for ended in over for wake in ended.wakers]
            for ended in over:
                ended.result = result
                ended.wakers = []
        for wake in wakers:
            wake()

    def wake_with(self, flight: Flight, wake: Callable[[], object]) -> None:
        """Call `wake` as soon as something has come of a question; in any thread."""
        with self._lock:
            if not flight.done:
                flight.wakers.append(wake)
                return
        wake()

    def served_stale(self) -> None:
        """Count an answer that was stale when it was used."""
        with self._lock:
            self._stats.stale += 1

    def until(self, found: Sequence[Found]) -> Instant:
        """When what was found must be looked for again."""
        return min((kept.until for kept in found), default=NEVER)

    def stats(self) -> NameStats:
        """What happened so far; a copy."""
        with self._lock:
            return replace(self._stats, evicted=self._cache.evicted, size=len(self._cache))

    def forget(self, name: str | None) -> None:
        """Drop every answer, or those of a name."""
        with self._lock:
            self._cache.forget(name)
