"""The asynchronous transport and the bodies it gives out."""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from holdfast.adapters.httpx.call import PEEK, Call, Compiled, Options, content_of, observe
from holdfast.adapters.httpx.events import watched
from holdfast.adapters.httpx.exchange import Exchange
from holdfast.adapters.httpx.library import AsyncBase, adopt, library_of, variant
from holdfast.adapters.httpx.pools import forget_failed, join_network, pools_below, way_of
from holdfast.adapters.httpx.progress import CURRENT
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.phases import DEFAULT_SHARES, Phase, Shares
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.ambient import deadline_at
from holdfast.runtime.net.dial import Dialer
from holdfast.runtime.net.resolver import Resolver
from holdfast.runtime.scope import Scope, ambient

__all__ = ["AsyncHoldfastTransport"]

Isolation = Literal["auto", "always", "never"]


class AsyncHoldfastTransport(AsyncBase):
    """Sends what is left with every request, and never waits longer than what is left.

    Wraps any asynchronous transport of httpx or httpx2. Every call is a scope of its own below
    the ambient one; it raises, beside the errors of the library:

    - `DeadlineExceeded`, which is the library's `TimeoutException` too: what was left is spent,
      also while the body trickles in, or the hop below answered 504 because its part was spent;
    - `InsufficientBudget`, likewise: refused before anything was sent;
    - `PhaseTimeout`, which is the library's `ConnectTimeout` and so on too: a phase of the call has
      used up its share of what was left.

    A deadline of a scope around the call ends that scope, as always: by cancelling the call.

    Args:
        inner: the transport that does the work.
        service: name of the service that is called; the host when empty.
        wire: which headers are sent.
        refuse_below: seconds; a call with less left is refused before it is sent.
        reserve: seconds that are kept back from what the next hop is told; the policy of the
            request may ask for more.
        raise_for_deadline: whether a 504 of a hop that ran out of time is raised as
            `DeadlineExceeded`, with that hop's cause in `cause.below`, or returned.
        isolation: whether a call has a task of its own. `auto`: yes, unless `inner` is one of
            the library's in-memory transports. Where it does not, a foreign cancellation
            (`asyncio.timeout`, `task.cancel()`) hits `inner` wherever it is.
        shares: how what is left is divided over the phases of a call.
        observer: is told of every call when it is over.
        resolver: looks names up; the one of the process when none is given.
        dialer: looks names up and connects, instead of one made from `resolver` and `shares`.
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
        isolation: Isolation = "auto",
        shares: Shares = DEFAULT_SHARES,
        observer: TrailObserver | None = None,
        resolver: Resolver | None = None,
        dialer: Dialer | None = None,
    ) -> None:
        adopt(self, "AsyncBaseTransport", inner)
        self.inner = inner
        options = Options(
            service, wire, refuse_below, reserve, raise_for_deadline, shares, observer
        )
        pools = pools_below(inner)
        first = Phase.POOL if pools else Phase.HEADER
        self._compiled = Compiled(options, way_of(inner), first, partial(forget_failed, pools))
        in_memory = library_of(inner).in_memory
        self._direct = isolation == "never" or (
            isolation == "auto" and isinstance(inner, in_memory)
        )
        self._pooled = bool(pools)
        if pools:
            join_network(inner, dialer or Dialer(resolver=resolver, shares=shares))

    async def handle_async_request(self, request: Any) -> Any:
        """Send `request`; see the class."""
        call = Call(self._compiled, request)
        call.admit()
        outgoing = call.outgoing(clamp=self._direct, watched=self._pooled)
        if self._pooled:
            watched(call, outgoing.extensions, is_async=True)
        if self._direct:
            return await self._direct_call(call, outgoing)
        exchange = Exchange(call)
        response = await exchange.begin(self.inner, outgoing)
        if response.status_code == 101 or request.method == "CONNECT":
            return response
        response.stream = stream = _body(_Exchanged, call, exchange)
        if response.status_code >= 400 or call.ledger is not None:
            await self._look(call, response, stream, exchange.peek)
        return response

    async def _direct_call(self, call: Call, outgoing: Any) -> Any:
        before = CURRENT.set(call.progress) if self._pooled else None
        try:
            async with Scope(call.name) as call.scope:
                call.enter(call.compiled.first)
                response = await self.inner.handle_async_request(outgoing)
                call.answered(response)
        except asyncio.CancelledError as exc:
            call.cut()
            call.over_and_done(exc)
            raise
        except Exception as exc:
            # A response that an application in memory cut at its limit is a failed assertion of the
            # transport, and not an error of its own.
            cut = isinstance(exc, AssertionError) and call.left <= 0
            error = call.over() if cut else call.explained(exc)
            call.over_and_done(error)
            if error is exc:
                raise
            raise error from exc
        finally:
            call.outlive()
            if before is not None:
                CURRENT.reset(before)
        body = response.stream
        if not isinstance(body, call.library.api.ByteStream):
            response.stream = stream = _body(_Direct, call, body)
            peek = stream.peek
        else:
            stream = body
            call.over_and_done()

            async def peek(_: int) -> bytes:
                return b"".join([part async for part in body])

        if response.status_code >= 400 or call.ledger is not None:
            await self._look(call, response, stream, peek)
        return response

    async def _look(self, call: Call, response: Any, stream: Any, peek: Any) -> None:
        try:
            observe(call, response, await peek(PEEK) if content_of(response) else b"")
        except BaseException:
            await stream.aclose()
            raise

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self.inner.aclose()

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.inner.__aexit__(exc_type, exc_value, traceback)

    def __repr__(self) -> str:
        return f"AsyncHoldfastTransport({self.inner!r})"


def _body(kind: type, call: Call, source: Any) -> Any:
    return variant(kind, "AsyncByteStream", call.library)(call, source)


class _Exchanged:
    """The body of a response whose exchange has a task of its own."""

    def __init__(self, call: Call, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> _Exchanged:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._exchange.read()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        await self._exchange.close()


class _Direct:
    """A body that is read in the caller's task, within the limit that held when the call began."""

    def __init__(self, call: Call, source: Any) -> None:
        self._call = call
        self._source = source
        self._parts: Any = None
        self._ahead: list[bytes] = []
        self._over = False

    def __aiter__(self) -> _Direct:
        return self

    async def __anext__(self) -> bytes:
        return self._ahead.pop(0) if self._ahead else await self._next()

    async def _next(self) -> bytes:
        call = self._call
        if self._parts is None:
            self._parts = self._source.__aiter__()
        try:
            if call.limit == NEVER or _bounded_by(call.limit):
                chunk: bytes = await self._parts.__anext__()
            else:
                async with deadline_at(call.limit, name=call.name):
                    chunk = await self._parts.__anext__()
        except StopAsyncIteration:
            self._end(None)
            raise
        except asyncio.CancelledError as exc:
            call.cut()
            self._end(exc)
            raise
        except Exception as exc:
            ended = call.ended(exc.cause) if isinstance(exc, ScopeEnded) else None
            error = ended or call.explained(exc)
            self._end(error)
            if error is exc:
                raise
            raise error from exc
        call.received += len(chunk)
        return chunk

    def _end(self, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self._call.over_and_done(error)

    async def peek(self, most: int) -> bytes:
        """The beginning of the body, which stays unread."""
        size = 0
        while size < most:
            try:
                chunk = await self._next()
            except StopAsyncIteration:
                break
            self._ahead.append(chunk)
            size += len(chunk)
        return b"".join(self._ahead)

    async def aclose(self) -> None:
        close = getattr(self._parts, "aclose", None)
        if close is not None:
            await close()
        await self._source.aclose()
        self._end(None)


def _bounded_by(limit: float) -> bool:
    here = ambient()
    return here is not None and here.limit <= limit and here.remaining() > 0
