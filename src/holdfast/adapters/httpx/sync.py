"""The synchronous transport: nothing can be cancelled in a thread, only bounded.

Every wait ends with the call: for a place in the pool, for the name, for each address, for the
proxy, for TLS, for each part that is sent or read. So headers and bodies that trickle in end at the
deadline as well.

Not covered: the time between two chunks that the caller itself spends (noticed at the next chunk),
and, with a transport or a network that is not the library's own, whatever that does between its
reads.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn, Self

from holdfast.adapters.httpx.blockcall import BlockingCall, working_for
from holdfast.adapters.httpx.blocking import join_blocking, telling
from holdfast.adapters.httpx.call import PEEK, Compiled, Options, content_of, observe
from holdfast.adapters.httpx.events import watched
from holdfast.adapters.httpx.library import SyncBase, adopt, variant
from holdfast.adapters.httpx.pools import pools_below, way_of
from holdfast.domain.instant import Duration
from holdfast.domain.phases import DEFAULT_SHARES, Phase, Shares
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.net.resolver import Resolver, default_resolver

__all__ = ["HoldfastTransport"]


class HoldfastTransport(SyncBase):
    """Sends what is left with every request, and never waits longer than what is left.

    Wraps any synchronous transport of httpx or httpx2. For arguments and errors see
    `AsyncHoldfastTransport`; for what a bound cannot cover here, see the module.
    """

    def __init__(
        self,
        inner: Any,
        *,
        service: str = "",
        wire: WireSettings = DEFAULT_WIRE,
        refuse_below: Duration = 0.0,
        reserve: Duration = 0.0,
        raise_for_deadline: bool = True,
        shares: Shares = DEFAULT_SHARES,
        observer: TrailObserver | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        adopt(self, "BaseTransport", inner)
        self.inner = inner
        options = Options(
            service, wire, refuse_below, reserve, raise_for_deadline, shares, observer
        )
        self._pooled = bool(pools_below(inner))
        first = Phase.POOL if self._pooled else Phase.HEADER
        self._compiled = Compiled(options, way_of(inner), first)
        join_blocking(inner, resolver or default_resolver(), shares)
        self._watched = self._pooled and telling(inner)

    def handle_request(self, request: Any) -> Any:
        """Send `request`; see the class."""
        watch = self._watched
        call = BlockingCall(self._compiled, request, watched=watch)
        call.admit()
        outgoing = call.outgoing(clamp=True, watched=watch)
        if watch:
            watched(call, outgoing.extensions, is_async=False)
        try:
            with working_for(call):
                call.enter(call.compiled.first)
                response = self.inner.handle_request(outgoing)
                call.answered(response)
        except Exception as exc:
            _fail(call, exc)
        if response.status_code == 101 or request.method == "CONNECT":
            call.over_and_done()
            return response
        kind = variant(_Body, "SyncByteStream", call.library)
        response.stream = stream = kind(call, response.stream)
        try:
            if call.left <= 0:
                raise call.over()
            if response.status_code >= 400 or call.ledger is not None:
                observe(call, response, stream.peek(PEEK) if content_of(response) else b"")
        except BaseException as exc:
            stream.failed(exc)
            raise
        return response

    def close(self) -> None:
        """Close the inner transport."""
        self.inner.close()

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.inner.__exit__(exc_type, exc_value, traceback)

    def __repr__(self) -> str:
        return f"HoldfastTransport({self.inner!r})"


def _fail(call: BlockingCall, exc: Exception) -> NoReturn:
    error = call.explained(exc)
    call.over_and_done(error)
    if error is exc:
        raise exc
    raise error from exc


class _Body:
    """A body that is read within the limit that held when the call began."""

    def __init__(self, call: BlockingCall, source: Any) -> None:
        self._call = call
        self._source = source
        self._parts: Any = None
        self._read = False
        self._ahead: list[bytes] = []

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        return self._ahead.pop(0) if self._ahead else self._next()

    def _next(self) -> bytes:
        call = self._call
        if call.left <= 0:
            error = call.over()
            call.over_and_done(error)
            raise error
        if self._parts is None:
            self._parts = iter(self._source)
        try:
            with working_for(call):
                chunk: bytes | None = next(self._parts, None)
        except Exception as exc:
            _fail(call, exc)
        if chunk is None:
            self._read = True
            call.over_and_done()
            raise StopIteration
        call.received += len(chunk)
        return chunk

    def peek(self, most: int) -> bytes:
        """The beginning of the body, which stays unread."""
        size = 0
        while size < most:
            try:
                chunk = self._next()
            except StopIteration:
                break
            self._ahead.append(chunk)
            size += len(chunk)
        return b"".join(self._ahead)

    def failed(self, error: BaseException) -> None:
        """The call ends with `error`, and nobody reads the rest."""
        self._call.over_and_done(error)
        self.close()

    def close(self) -> None:
        if self._read:  # so nothing is waited for
            self._source.close()
            return
        with working_for(self._call):
            close = getattr(self._parts, "close", None)
            if close is not None:
                close()
            self._source.close()
        self._call.over_and_done()
