"""One direction of a stream: its deadline, and the call that waits for it."""

from __future__ import annotations

import asyncio
from typing import Literal, Protocol

from holdfast.domain.errors import StreamTimeout, UsageError
from holdfast.domain.instant import NEVER, Instant
from holdfast.runtime.driver import Driver
from holdfast.runtime.timers import Alarm

__all__ = ["Side"]

_Direction = Literal["read", "write"]


class _Whole(Protocol):
    peer: str
    driver: Driver

    def has_arrived(self) -> bool: ...


class Side:
    """One direction of a stream: its deadline, and the call that waits.

    Attributes:
        at: monotonic instant by which calls must be done.
        busy: a call is under way.
    """

    __slots__ = ("_alarm", "_probed", "_stream", "at", "busy", "name", "waiter")

    def __init__(self, stream: _Whole, name: _Direction) -> None:
        self._stream = stream
        self.name: _Direction = name
        self.at: Instant = NEVER
        self.busy = False
        self.waiter: asyncio.Future[None] | None = None
        self._alarm: Alarm | None = None
        self._probed = False

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
        """Wait to be woken.

        Raises:
            StreamTimeout: the deadline has passed.
        """
        driver = self._stream.driver
        self._probed = False
        self.waiter = waiter = driver.loop.create_future()
        self._arm()
        try:
            if not waiter.done() and self.at <= driver.now():
                self._due()
            await waiter
        except TimeoutError:
            raise StreamTimeout(self.name, self._stream.peer, moved) from None
        finally:
            self.waiter = None
            self._disarm()

    def wake(self) -> None:
        """Something has happened that the call waits for."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def move(self, at: Instant) -> None:
        """Have another deadline; the call that waits follows it."""
        self.at = at
        if self.waiter is not None and not self.waiter.done():
            self._disarm()
            self._probed = False
            self._arm()

    def _arm(self) -> None:
        if self.at == NEVER:
            return
        driver = self._stream.driver
        if self.at <= driver.now():
            driver.loop.call_soon(self._due)
        else:
            self._alarm = driver.alarm(self.at, self._due)

    def _disarm(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            self._stream.driver.drop(alarm)

    def _due(self) -> None:
        waiter = self.waiter
        if waiter is None or waiter.done() or self.at > self._stream.driver.now():
            return
        if not self._probed and self.name == "read" and self._stream.has_arrived():
            # It is in the kernel already: libuv asks its timers before it asks the sockets. One
            # more turn, and not two: half a TLS record would be readable for ever.
            self._probed = True
            self._alarm = None
            self._stream.driver.loop.call_later(0, self._due)
            return
        waiter.set_exception(TimeoutError())
