"""Messages from a function in a thread to the task that has started it, one at a time.

The function waits until its message before was taken, and is told when nobody takes any more: a
thread cannot be cancelled, but one that hands messages over need not wait for ever. It runs in the
context of the task, so its scope and its identity are those of the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from threading import Condition
from typing import Any, Final

from holdfast.runtime.tasks import aside

__all__ = ["OVER", "Hand"]

OVER: Final = object()
"""What is taken when the function has ended."""


class Hand:
    """See the module. Made in the task, for one function.

    Attributes:
        closed: whether nobody takes any more.
    """

    def __init__(self) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._came = asyncio.Event()
        self._room = Condition()
        self._messages: list[Any] = []
        self._runs = False
        self._outcome: asyncio.Future[None] | None = None

    # -- in the task -----------------------------------------------------------------------------

    def start(
        self, pool: Executor | None, function: Callable[[], None], done: Callable[[object], object]
    ) -> None:
        """Run the function in a thread.

        Args:
            pool: of threads; that of the loop without one.
            function: calls `give`.
            done: is called in the thread, with this object, when the function has ended.
        """
        here = copy_context()

        def run() -> None:
            if not self._begin():
                return
            try:
                here.run(function)
            finally:
                with self._room:
                    self._runs = False
                done(self)

        self._outcome = self._loop.run_in_executor(pool, run)
        self._outcome.add_done_callback(self._ring)

    async def take(self) -> Any:
        """The next message, or `OVER`.

        Raises:
            BaseException: what the function has raised.
        """
        assert self._outcome is not None, "it was not started"
        while not self._messages:
            if self._outcome.done():
                self._outcome.result()
                return OVER
            await self._came.wait()
            self._came.clear()
        with self._room:
            self._room.notify()
            return self._messages.pop()

    def close(self, left: Callable[[], object]) -> None:
        """Nobody takes any more.

        A function that waits for a thread is not begun. When it still runs, `left` is called, and
        the `done` of `start` after that.
        """
        assert self._outcome is not None, "it was not started"
        self._outcome.cancel()
        with self._room:
            self.closed = True
            if self._runs:
                left()
            self._room.notify()

    def _ring(self, _: object = None) -> None:
        self._came.set()

    # -- in the thread ---------------------------------------------------------------------------

    def _begin(self) -> bool:
        with self._room:
            self._runs = not self.closed
            return self._runs

    def give(self, message: Any) -> bool:
        """Hand a message over when the one before was taken; whether somebody is there for it."""
        with self._room:
            while self._messages and not self.closed:
                self._room.wait()
            if self.closed:
                return False
            self._messages.append(message)
            self._loop.call_soon_threadsafe(self._ring)  # it runs: its task has not closed this
        return True

    def ask(self, what: Callable[[], Awaitable[Any]]) -> Any:
        """Have something done on the loop, and wait for it. Also in threads of the function's own.

        Raises:
            BaseException: what that has raised.
        """
        answer: Future[Any] = Future()

        async def do() -> None:
            try:
                answer.set_result(await what())
            except BaseException as error:  # raised in the thread
                answer.set_exception(error)

        def begin() -> None:
            aside(do(), name="holdfast asked by a thread")

        self._loop.call_soon_threadsafe(begin)
        return answer.result()
