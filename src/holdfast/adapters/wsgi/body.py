"""The body of a response, as the server iterates it.

An application may make its body long after it has returned. So every part is asked for inside the
scope of the request, and `close()` is called there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
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
        verdict: see there.
    """

    __slots__ = ("_closed", "_exchange", "_inner", "_outcome", "_parts", "_verdict")

    def __init__(self, inner: Iterable[bytes], exchange: Exchange, verdict: Verdict) -> None:
        self._inner = inner
        self._exchange = exchange
        self._verdict = verdict
        self._parts: Iterator[bytes] | None = None
        self._outcome = Outcome.CANCELLED  # unless it comes to its end
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._further() if self._exchange.begun else self._first()

    def close(self) -> None:
        """The server is done with it, whether or not it has read all."""
        if not self._closed:
            self._closed = True
            self._close()

    def _first(self) -> bytes:
        exchange = self._exchange
        part: bytes | None = b""
        try:
            exchange.step_in()
            try:
                if self._parts is None:
                    self._parts = iter(self._inner)
                while part == b"":  # one that is empty begins no response
                    part = next(self._parts, None)
            finally:
                exchange.step_out()
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
        if exchange.streams:
            exchange.touch()
        if not exchange.complete:
            self._look()  # the client may have read slowly
        exchange.step_in()
        try:
            if self._parts is None:  # it has begun by `write`
                self._parts = iter(self._inner)
            part = next(self._parts)
        except StopIteration:
            if not exchange.complete:
                self._look()
            self._ended()
            raise
        except BaseException as error:
            self._verdict.failed(exchange, error)
            self._outcome = Outcome.FAILED
            raise
        finally:
            exchange.step_out()
        if not exchange.complete:
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
        self._exchange.complete = True

    def _close(self) -> None:
        exchange = self._exchange
        exchange.lift()
        close: Callable[[], object] | None = getattr(self._inner, "close", None)
        exchange.step_in()
        try:
            if close is not None:
                close()
        finally:
            exchange.step_out()
            exchange.close(self._outcome)


class _SizedBody(Body):
    """Of a body whose number of parts is known, which servers ask for."""

    __slots__ = ()

    def __len__(self) -> int:
        inner = self._inner
        assert isinstance(inner, Sized)
        return len(inner)


def body_of(inner: Iterable[bytes], exchange: Exchange, verdict: Verdict) -> Body:
    """The body that the server gets for `inner`."""
    kind = _SizedBody if isinstance(inner, Sized) else Body
    return kind(inner, exchange, verdict)
