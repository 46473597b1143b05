"""One direction of a stream: its deadline, and the call that waits for it."""

from __future__ import annotations

import asyncio
from typing import Final, Literal, Protocol

from holdfast.domain.errors import StreamTimeout, UsageError
from holdfast.domain.instant import NEVER, Instant
from holdfast.runtime.driver import Driver
from holdfast.runtime.timers import Alarm

__all__ = ["Direction", "Side"]

Direction = Literal["read", "write"]

_TURNS: Final = 2
"""Turns of the loop within which it has surely asked the kernel: libuv asks its timers first, then
runs what is to be called soon, and the sockets last. Not for as long as the socket is ready: half a
TLS record would be readable for ever."""


class _Whole(Protocol):
    peer: str
    driver: Driver

    def is_ready(self, direction: Direction) -> bool: ...


class Side:
    """One direction of a stream: its deadline, and the call that waits.

    Attributes:
        at: monotonic instant by which calls must be done.
        busy: a call is under way.
    """

    __slots__ = ("_alarm", "_expired", "_stream", "_turn", "_waiter", "at", "busy", "name")

    def __init__(self, stream: _Whole, name: Direction) -> None:
        self._stream = stream
        self.name: Direction = name
        self.at: Instant = NEVER
        self.busy = False
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: Alarm | None = None
        self._turn: asyncio.Handle | None = None
        self._expired = False

    @property
    def waiting(self) -> bool:
        """Whether a call waits, and nothing has happened yet."""
        return self._waiter is not None and not self._waiter.done()

    def enter(self) -> None:
        """Begin a call.

        Raises:
            UsageError: another one is under way.
        """
        if self.busy:
            raise UsageError(
                f"two tasks {self.name} the same stream at once ({self._stream.peer}); "
                f"let one of them do it, or guard it by a lock"
            )
        self.busy = True

    async def wait(self, moved: int = 0) -> None:
        """Wait to be woken; whether there is reason to go on is for the caller to see.

        Raises:
            StreamTimeout: the deadline has passed.
        """
        self._expired = False
        self._waiter = self._stream.driver.loop.create_future()
        self._arm()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._disarm()
        if self._expired:
            raise StreamTimeout(self.name, self._stream.peer, moved)

    def wake(self) -> None:
        """Something has happened that the call waits for. That wins over a deadline."""
        self._expired = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def move(self, at: Instant) -> None:
        """Have another deadline; the call that waits follows it."""
        self.at = at
        if self.waiting:
            self._disarm()
            self._arm()
        elif at > self._stream.driver.now():
            self._expired = False  # the call has not been told yet, and waits again

    def _arm(self) -> None:
        if self.at == NEVER:
            return
        driver = self._stream.driver
        if self.at <= driver.now():
            self._turn = driver.loop.call_soon(self._ask, 0)
        else:
            self._alarm = driver.alarm(self.at, self._rang)

    def _disarm(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            self._stream.driver.drop(alarm)
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()

    def _rang(self) -> None:
        self._alarm = None
        if self.waiting:  # else its task is about to run
            self._ask(0)

    def _ask(self, turn: int) -> None:
        self._turn = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if turn < _TURNS and self._stream.is_ready(self.name):
            # It is in the kernel already, and the loop was held up, or asks its timers first.
            self._turn = self._stream.driver.loop.call_soon(self._ask, turn + 1)
            return
        self._expired = True
        waiter.set_result(None)
