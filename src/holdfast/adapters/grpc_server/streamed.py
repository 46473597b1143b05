"""Plain functions that stream their answers, on grpc.aio.

By itself grpc reads such a generator in a thread that waits until the message before was taken,
also when its client has gone and nobody takes any more: that thread is lost for ever, and with
enough of them the pool is. So it is read in here, as an async generator whose messages come from a
thread, and the thread is told when nobody takes them: the generator is closed at its next message,
in the thread and the context that it ran in. Meanwhile `context.is_active()` says it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, Future
from contextvars import copy_context
from threading import Condition
from typing import Any, Final

import grpc.aio

from holdfast.adapters.grpc_server.terms import Rules
from holdfast.runtime.tasks import aside

__all__ = ["Streamed"]

_END: Final = object()


class Streamed:
    """The handler of one method.

    Args:
        rules: of the carrier.
        inner: the function.
        asks: whether requests are a stream.
        pool: in whose threads it runs; that of the loop without one.
    """

    def __init__(
        self, rules: Rules, inner: Callable[..., Any], asks: bool, pool: Executor | None
    ) -> None:
        self._rules = rules
        self._inner = inner
        self._asks = asks
        self._pool = pool

    async def serve(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The messages of one call."""
        loop = asyncio.get_running_loop()
        hand = _Hand(loop)
        seen = ThreadContext(context, hand)
        if self._asks:
            request = _requests(context, hand)
        here = copy_context()
        running = loop.run_in_executor(self._pool, lambda: here.run(self._run, hand, request, seen))
        running.add_done_callback(hand.ring)
        try:
            while (message := await hand.take(running)) is not _END:
                yield message
            await running  # what it has raised
        finally:
            running.cancel()  # one that waits for a thread is not begun any more
            hand.close(self._rules.threads)

    def _run(self, hand: _Hand, request: Any, context: ThreadContext) -> None:
        """The function itself, in its thread."""
        if not hand.begin():
            return
        try:
            messages = self._inner(request, context)
            try:
                for message in messages:
                    if not hand.give(message):
                        return
            finally:
                close = getattr(messages, "close", None)
                if close is not None:
                    close()
        finally:
            hand.end()
            self._rules.thread_done(hand)


class _Hand:
    """From a thread to a task, one message at a time.

    Attributes:
        loop: of the task.
        closed: whether nobody takes any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False
        self._came = asyncio.Event()
        self._room = Condition()
        self._runs = False
        self._messages: list[Any] = []

    def begin(self) -> bool:
        """In the thread: it begins; whether it should."""
        with self._room:
            self._runs = not self.closed
            return self._runs

    def end(self) -> None:
        """In the thread: it has ended."""
        with self._room:
            self._runs = False

    def give(self, message: Any) -> bool:
        """In the thread: hand a message over when the one before was taken; whether it will be."""
        with self._room:
            while self._messages and not self.closed:
                self._room.wait()
            if self.closed:
                return False
            self._messages.append(message)
            self.loop.call_soon_threadsafe(self.ring)  # it runs: the task has not closed this yet
        return True

    async def take(self, running: asyncio.Future[None]) -> Any:
        """In the task: the next message, or the end."""
        while not self._messages:
            if running.done():
                return _END
            await self._came.wait()
            self._came.clear()
        with self._room:
            self._room.notify()
            return self._messages.pop()

    def ring(self, _: object = None) -> None:
        """There is something to see."""
        self._came.set()

    def close(self, threads: set[object]) -> None:
        """In the task: nobody takes any more. A thread that still runs is added to `threads`."""
        with self._room:
            self.closed = True
            if self._runs:
                threads.add(self)
            self._room.notify()

    def ask(self, what: Callable[[], Awaitable[Any]]) -> Any:
        """In the thread, or in one that it has started: have something done on the loop."""
        answer: Future[Any] = Future()

        async def do() -> None:
            try:
                answer.set_result(await what())
            except BaseException as error:
                answer.set_exception(error)

        def begin() -> None:
            aside(do(), name="holdfast grpc thread")

        self.loop.call_soon_threadsafe(begin)
        return answer.result()


def _requests(context: Any, hand: _Hand) -> Iterator[Any]:
    while not hand.closed:
        try:
            message = hand.ask(context.read)
        except Exception:
            if hand.closed:  # it cannot be read from a call that is over
                return
            raise
        if message is grpc.aio.EOF:
            return
        yield message


class ThreadContext:
    """The context of a call as plain functions have it: what others await returns when it is done.

    Everything else is that of grpc.
    """

    __slots__ = ("_context", "_hand")

    def __init__(self, context: Any, hand: _Hand) -> None:
        self._context = context
        self._hand = hand

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with a status; raises."""
        self._hand.ask(lambda: self._context.abort(code, details, trailing_metadata))

    def send_initial_metadata(self, metadata: Any) -> None:
        """Send them now."""
        self._hand.ask(lambda: self._context.send_initial_metadata(metadata))

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Have `callback` called when the call is over; whether it will be."""
        if self._hand.closed:
            return False

        def done(context: Any) -> None:
            callback()

        self._context.add_done_callback(done)
        return True

    def is_active(self) -> bool:
        """Whether somebody still waits for messages."""
        return not self._hand.closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
