"""The body of a response, as the server iterates it.

An application may make its body long after it has returned. So every part is asked for inside the
context of the request, in which its scope is the ambient one, and so is its `close()`. What the
application sets in context variables is there from the call to the end, and gone with it: the next
request of the same thread does not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import Context
from typing import Protocol

from holdfast.adapters.wsgi.exchange import Exchange
from holdfast.domain.cause import Cause
from holdfast.domain.tree import Outcome

__all__ = ["Body", "Verdict", "body_of"]


class Verdict(Protocol):
    """Who decides what an error of the application means."""

    def failed(self, exchange: Exchange, error: BaseException) -> Cause | None:
        """Why the request has ended, where it is answered for; else the error goes on."""
        ...

    def answered(self, exchange: Exchange, cause: Cause) -> Iterable[bytes]:
        """Answer it; the body of the answer."""
        ...

    def cut(self, exchange: Exchange) -> BaseException:
        """The error that has the server cut it."""
        ...


class Body:
    """See the module.

    Args:
        inner: the body that the application returned.
        exchange: of the request.
        context: of the request.
        verdict: see there.
    """

    __slots__ = ("_closed", "_context", "_exchange", "_inner", "_outcome", "_parts", "_verdict")

    def __init__(
        self, inner: Iterable[bytes], exchange: Exchange, context: Context, verdict: Verdict
    ) -> None:
        self._inner = inner
        self._exchange = exchange
        self._context = context
        self._verdict = verdict
        self._parts: Iterator[bytes] | None = None
        self._outcome = Outcome.CANCELLED  # unless it comes to its end
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(self._further if self._exchange.begun else self._first)

    def close(self) -> None:
        """The server is done with it, whether or not it has read all."""
        if not self._closed:
            self._closed = True
            self._context.run(self._close)

    def _first(self) -> bytes:
        exchange = self._exchange
        part: bytes | None = b""
        try:
            if self._parts is None:
                self._parts = iter(self._inner)
            while part == b"":  # one that is empty begins no response
                part = next(self._parts, None)
        except BaseException as error:
            cause = self._verdict.failed(exchange, error)
            if cause is None:
                self._outcome = Outcome.FAILED
                raise
        else:
            cause = exchange.instead()
        if cause is not None:
            self._outcome = Outcome.EXPIRED
            self._parts = iter(self._verdict.answered(exchange, cause))
            return next(self._parts)
        exchange.begin()
        if part is None:
            self._ended()
            raise StopIteration
        exchange.count(part)
        return part

    def _further(self) -> bytes:
        exchange = self._exchange
        if self._parts is None:  # it has begun by `write`
            self._parts = iter(self._inner)
        if exchange.streams:
            exchange.touch()
        self._look()
        try:
            part = next(self._parts)
        except StopIteration:
            self._look()
            self._ended()
            raise
        except BaseException as error:
            self._verdict.failed(exchange, error)
            self._outcome = Outcome.FAILED
            raise
        self._look()
        exchange.count(part)
        return part

    def _look(self) -> None:
        if self._exchange.late:
            self._outcome = Outcome.EXPIRED
            raise self._verdict.cut(self._exchange)

    def _ended(self) -> None:
        if self._outcome is Outcome.CANCELLED:
            self._outcome = Outcome.DONE
        self._exchange.exhausted()

    def _close(self) -> None:
        exchange = self._exchange
        exchange.lift()
        close: Callable[[], object] | None = getattr(self._inner, "close", None)
        try:
            if close is not None:
                close()
        finally:
            exchange.close(self._outcome)


class _SizedBody(Body):
    """Of a body whose number of parts is known, which servers ask for."""

    __slots__ = ()

    def __len__(self) -> int:
        inner = self._inner
        assert isinstance(inner, Sized)
        return len(inner)


def body_of(inner: Iterable[bytes], exchange: Exchange, context: Context, verdict: Verdict) -> Body:
    """The body that the server gets for `inner`."""
    kind = _SizedBody if isinstance(inner, Sized) else Body
    return kind(inner, exchange, context, verdict)
