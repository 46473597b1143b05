"""Plain functions that stream their answers, on grpc.aio.

By itself grpc reads such a generator in a thread that waits until the message before was taken,
also when its client has gone and nobody takes any more: that thread is lost for ever, and with
enough of them the pool is. So it is read in here, as an async generator whose messages come from a
thread, and the thread is told when nobody takes them: the generator is closed at its next message,
in the thread and the context that it ran in. Meanwhile `context.is_active()` says it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc.aio

from holdfast.adapters.grpc_server.terms import Rules
from holdfast.runtime.hand import OVER, Hand

__all__ = ["Streamed"]


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
        hand = Hand()
        seen = ThreadContext(context, hand)
        if self._asks:
            request = _requests(context, hand)
        hand.start(self._pool, lambda: self._run(hand, request, seen), self._rules.thread_done)
        try:
            while (message := await hand.take()) is not OVER:
                yield message
        finally:
            hand.close(lambda: self._rules.threads.add(hand))

    def _run(self, hand: Hand, request: Any, context: ThreadContext) -> None:
        """The function itself, in its thread."""
        messages = self._inner(request, context)
        try:
            for message in messages:
                if not hand.give(message):
                    return
        finally:
            close = getattr(messages, "close", None)
            if close is not None:
                close()


def _requests(context: Any, hand: Hand) -> Iterator[Any]:
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

    def __init__(self, context: Any, hand: Hand) -> None:
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
