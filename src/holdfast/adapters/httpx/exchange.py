"""One exchange in a task of its own: it dials, sends, reads and closes.

Nobody but Holdfast ever cancels that task, and Holdfast does so with the care of
`runtime.delivery`. So the pool of httpcore never sees a cancellation in a place where it loses a
connection for ever (httpcore 1.0.9 does: encode/httpcore#1093), whoever cancels the caller and
however often. The caller is free at once; the task closes what it holds and ends by itself.

The task reads ahead, at most 64 KiB, so that the connection of a small response is back in the pool
before the caller has looked at it, also when the caller never does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any, Final

from holdfast.adapters.httpx.call import Call
from holdfast.adapters.httpx.progress import CURRENT
from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import Cancelled
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.driver import driver_of
from holdfast.runtime.scope import Scope, ambient
from holdfast.runtime.tasks import spawn

__all__ = ["Exchange"]

_AHEAD: Final = 65_536
_PATIENCE: Final[Duration] = 0.02
"""Seconds that a cancelled caller waits for the exchange to end, so that what it used is free."""

_CLOSING: Final[Duration] = 1.0
"""Seconds that a caller who closes a response waits for that."""


class Exchange:
    """A request on its way and the response to it.

    Args:
        call: its bounds.
    """

    scope: Scope
    task: asyncio.Task[None]

    def __init__(self, call: Call) -> None:
        self.call = call
        self.head: Any = None
        self.inner: Any = None
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.error: BaseException | None = None
        self.complete = False
        self.ended = False
        self.closing = False
        self._unread = False
        self.loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    # -- in the caller's task --------------------------------------------------------------------

    async def begin(self, transport: Any, request: Any) -> Any:
        """Start; the response as soon as its head is there."""
        driver = driver_of(self.loop)
        here = ambient()
        local = here is not None and here.driver is driver
        self.task, self.scope = spawn(
            self._run(transport, request),
            name=self.call.name,
            parent=here if here is not None and local else driver.root,
            driver=driver,
            seconds=NEVER if here is None or local else here.remaining(),
        )
        self.call.scope = self.scope
        self.task.add_done_callback(self._finish)
        try:
            while self.head is None and not self.ended:
                await self._news()
        except asyncio.CancelledError as exc:
            exc.add_note(f"{self.call.doing()} of '{self.call.name}'")
            await self._abandon()
            raise
        if self.head is None:
            raise self._failure()
        return self.head

    async def read(self) -> bytes | None:
        """The next part of the body, or none after the last."""
        while not self.chunks:
            if self.ended:
                if self.complete:
                    return None
                raise self._failure()
            try:
                await self._news()
            except asyncio.CancelledError as exc:
                exc.add_note(f"{self.call.doing()} of '{self.call.name}'")
                if not self.ended:
                    self.call.cut()
                raise
        chunk = self.chunks.popleft()
        self.size -= len(chunk)
        self._wake(self._room)
        return chunk

    async def peek(self, most: int) -> bytes:
        """The beginning of the body, which stays unread: all of it, or at least `most` bytes."""
        while not self.ended and self.size < min(most, _AHEAD):
            await self._news()
        return b"".join(self.chunks)

    async def close(self) -> None:
        """Give the connection back, or close it when the body is not read to its end.

        Goes on when the caller is cancelled meanwhile.
        """
        self.closing = True
        self.chunks.clear()
        if self.ended:
            return
        if self._room is not None and not self._room.done():
            self._wake(self._room)
        else:
            self.scope.cancel("the response was closed before its end", kind=CauseKind.CALLER)
        await self._end_within(_CLOSING)

    async def _abandon(self) -> None:
        self.closing = True
        if not self.ended:
            self.scope.cancel("its caller was cancelled", kind=CauseKind.PARENT)
            try:
                await self._end_within(_PATIENCE)
            finally:
                # It knows best where it was, but it may be late.
                self.call.cut()

    async def _end_within(self, seconds: Duration) -> None:
        try:
            await asyncio.wait([self.task], timeout=seconds)
        finally:
            if not self.ended:
                self.scope.disown()

    async def _news(self) -> None:
        self._reader = self.loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _failure(self) -> BaseException:
        # An error holds its frames, and they hold us: what is raised is kept no longer.
        error, self.error = self.error, None
        if error is None:
            # Somebody who does not know Holdfast cancelled the task of the exchange.
            cause = self.call.cause("its task was cancelled from outside", kind=CauseKind.CALLER)
            return Cancelled(cause)
        return error

    # -- in its own task -------------------------------------------------------------------------

    async def _run(self, transport: Any, request: Any) -> None:
        call = self.call
        CURRENT.set(call.progress)
        try:
            call.enter(call.compiled.first)
            response = await transport.handle_async_request(request)
            self.inner = response.stream
            call.answered(response)
            if response.status_code == 101 or request.method == "CONNECT":
                # The connection is the caller's now, for another protocol. Nobody else must read.
                self.closing = True
            self.head = response
            self._wake(self._reader)
            if response.status_code != 101 and request.method != "CONNECT":
                await self._pump()
            self.complete = True
        except asyncio.CancelledError as exc:
            self.error = self._cancelled()
            call.over_and_done(self.error or exc)
            raise
        except Exception as exc:
            self.error = call.explained(exc)
            if self.error is not exc:
                self.error.__cause__ = exc
            call.over_and_done(self.error)
        else:
            call.over_and_done()

    def _cancelled(self) -> BaseException | None:
        call, cause = self.call, self.scope.reached()
        if call.overdue:
            return call.late_phase()
        # Where the caller was slow to take what had come, the time was not spent in the call.
        call.cut(blamed=not self._unread)
        return None if cause is None else call.ended(cause)

    async def _pump(self) -> None:
        parts = self.inner.__aiter__()
        try:
            while not self.closing:
                try:
                    chunk = await parts.__anext__()
                except StopAsyncIteration:
                    break
                self.call.received += len(chunk)
                self.size += len(chunk)
                self.chunks.append(chunk)
                self._wake(self._reader)
                while self.size >= _AHEAD and not self.closing:
                    self._room = self.loop.create_future()
                    self._unread = True
                    await self._room
                    self._unread = False
        finally:
            # A generator that is left alone would be closed some time by the garbage collector.
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()
            await self.inner.aclose()

    def _finish(self, task: asyncio.Task[None]) -> None:
        self.ended = True
        # A thousand cancelled calls would be 90,000 objects in cycles, and pauses to collect them.
        # The error of a cancelled task holds its frames, and they hold the task, until it is asked.
        if self.closing:
            self.error = None
        elif self.error is None and task.cancelled():
            # Cancelled before it began: `_run` has not seen why.
            cause = self.scope.reached()
            self.error = None if cause is None else self.call.ended(cause)
        if task.cancelled():
            with contextlib.suppress(asyncio.CancelledError):
                task.exception()
        self.call.outlive()
        del self.task, self.scope
        self._wake(self._reader)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
