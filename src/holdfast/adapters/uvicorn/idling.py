"""The limit on the time between two requests of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from holdfast.domain.instant import NEVER, Duration, Instant

__all__ = ["Idling"]

_EARLY: Final[Duration] = 0.001
"""What a timer of uvloop may be early."""


class Idling:
    """uvicorn sets a timer behind each response and cancels it at the next request, which is a
    tenth of all that a short request costs. Here the one timer of a connection is left alone, and
    looks when it rings.

    Args:
        loop: of the connection.
        now: its clock.
        limit: seconds.
        expired: called when the connection has been idle for so long.
    """

    __slots__ = ("_expired", "_limit", "_loop", "_now", "_timer", "since")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], Instant],
        limit: Duration,
        expired: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._now = now
        self._limit = limit
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self.since: Instant = NEVER
        """Since when it is idle. To be set to `NEVER` at the first byte of a request."""

    def begin(self) -> None:
        """A response is complete, and nothing stands behind its request."""
        self.since = self._now()
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit, self._look)

    def drop(self) -> None:
        """The connection is gone."""
        self.since = NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self.since == NEVER:
            return
        left = self.since + self._limit - self._now()
        if left > _EARLY:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._expired()
