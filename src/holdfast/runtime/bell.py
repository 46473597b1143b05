"""Waiting for something to change, or for an instant, whichever comes first."""

from __future__ import annotations

import asyncio

from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.driver import driver_of

__all__ = ["Bell"]


class Bell:
    """A bell that one waits for and many ring. Rung before it is waited for, it is not lost.

    Args:
        every: seconds between two answers at the least, so that whoever looks at thousands of
            things at each ring is not kept busy by them.
    """

    def __init__(self, every: Duration = 0.0) -> None:
        self._driver = driver_of(asyncio.get_running_loop())
        self._every = every
        self._rung = False
        self._held_back = False
        self._free_at: Instant = 0.0
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Something has changed. In the thread of the loop only."""
        self._rung = True
        if self._waiter is not None and not self._held_back:
            self._wake()

    async def wait(self, until: Instant = NEVER) -> None:
        """Wait until it rings, or until `until`, a monotonic instant."""
        driver = self._driver
        self._waiter = waiter = driver.loop.create_future()
        alarm = None if until == NEVER else driver.alarm(until, self._answer)
        if self._rung and not self._held_back:
            self._wake()
        try:
            await waiter
        finally:
            self._waiter = None
            self._free_at = driver.now() + self._every
            if alarm is not None:
                driver.drop(alarm)

    def _wake(self) -> None:
        if self._free_at > self._driver.now():
            self._held_back = True
            self._driver.alarm(self._free_at, self._let_through)
        else:
            self._answer()

    def _let_through(self) -> None:
        self._held_back = False
        if self._rung:
            self._answer()

    def _answer(self) -> None:
        # What rings from here on, while the one who waits has not run yet, is for its next wait.
        if self._waiter is not None and not self._waiter.done():
            self._rung = False
            self._waiter.set_result(None)
