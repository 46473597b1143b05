"""The handler of one method, with a scope around each of its calls.

Made once for each method: what differs from call to call is in the context of its task, where the
interceptor has put it. A handler that is an async generator is read in here, and its messages are
written to the call: so a deadline also ends a call whose client does not read, and the generator is
closed within its scope.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

import grpc.aio

from holdfast.adapters.grpc_server.answers import answer_to, code_of, timing_of
from holdfast.adapters.grpc_server.calls import GrpcCalls
from holdfast.adapters.grpc_server.rpc import Rpc
from holdfast.adapters.grpc_server.terms import MethodTerms, Rules
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import Instant
from holdfast.runtime.clock import monotonic

__all__ = ["COMING", "Coming", "Method"]

Coming = tuple[Instant, Any]
"""Arrival and metadata of a call."""

COMING: Final[ContextVar[Coming]] = ContextVar("holdfast grpc call")


class Method:
    """See the module.

    Args:
        rules: of the carrier.
        calls: the count of what is in flight.
        path: of the method.
        inner: the handler.
        streams: whether requests, and whether answers, are a stream.
    """

    def __init__(
        self,
        rules: Rules,
        calls: GrpcCalls,
        path: str,
        inner: Callable[..., Any],
        streams: tuple[bool, bool],
    ) -> None:
        self._rules = rules
        self._calls = calls
        self._inner = inner
        self._asks = streams[0]
        self._yields = inspect.isasyncgenfunction(inner)
        self._terms = terms = MethodTerms(rules, path, any(streams))
        self._says = rules.timings or terms.observing
        if not any(streams):
            self.serve: Callable[[Any, Any], Any] = self._single
        else:
            self.serve = self._stream

    async def _single(self, request: Any, context: Any) -> Any:
        """One request, one answer."""
        calls = self._calls
        calls.running += 1
        try:
            arrival, metadata = COMING.get()
            rpc = Rpc(self._terms, arrival, metadata, context.time_remaining(), monotonic())
            cause = rpc.begin()
            if cause is not None:
                return await self._end(rpc, cause, context)
            try:
                answer = await self._inner(request, context)
            except BaseException as error:
                await self._failed(rpc, error, context)
                raise
            cause = rpc.conclude(None)
            if cause is not None:
                return await self._end(rpc, cause, context)
            if self._says:
                self._say(rpc, context)
            return answer
        finally:
            calls.running -= 1
            if calls.idle is not None:
                calls.look()

    async def _stream(self, request: Any, context: Any) -> Any:
        """At least one of the sides is a stream."""
        calls = self._calls
        calls.running += 1
        try:
            arrival, metadata = COMING.get()
            rpc = Rpc(self._terms, arrival, metadata, context.time_remaining(), monotonic())
            cause = rpc.begin()
            if cause is not None:
                return await self._end(rpc, cause, context)
            try:
                answer = await self._streamed(rpc, request, context)
            except BaseException as error:
                await self._failed(rpc, error, context)
                raise
            cause = rpc.conclude(None)
            if cause is not None:
                return await self._end(rpc, cause, context)
            if self._says:
                self._say(rpc, context)
            return answer
        finally:
            calls.running -= 1
            if calls.idle is not None:
                calls.look()

    async def _streamed(self, rpc: Rpc, request: Any, context: Any) -> Any:
        """The handler itself."""
        if rpc.watched:
            context = Watched(context, rpc)
        if not self._asks:
            if self._yields:
                return await _pass_on(self._inner(request, context), context.write)
            return await self._inner(request, context)
        requests = Requests(request, rpc)
        try:
            if self._yields:
                return await _pass_on(self._inner(requests, context), context.write)
            return await self._inner(requests, context)
        finally:
            await requests.aclose()

    # -- ending ----------------------------------------------------------------------------------

    def _say(self, rpc: Rpc, context: Any) -> None:
        """Tell what it spent, and count what would have been cut."""
        if self._rules.timings and rpc.named:
            ours = timing_of(rpc, monotonic())
            context.set_trailing_metadata((*context.trailing_metadata(), *ours))
        if rpc.terms.observing:
            rpc.compare(monotonic())

    async def _failed(self, rpc: Rpc, error: BaseException, context: Any) -> None:
        """Answer, if the handler has not failed by itself; returns where its error is to go on."""
        cause = rpc.conclude(error)
        if isinstance(error, GeneratorExit):  # the loop is closed over it
            return
        if cause is None and isinstance(error, asyncio.CancelledError) and not rpc.closed:
            # By grpc alone it would not be answered at all, and its client would wait.
            what = "the handler was cancelled"
            cause = rpc.cause_of(CauseKind.CALLER, monotonic(), what)
        if cause is not None:
            await self._end(rpc, cause, context)

    async def _end(self, rpc: Rpc, cause: Cause, context: Any) -> None:
        """Answer for the handler; raises what tells grpc that this is done."""
        code = code_of(cause)
        self._rules.note(rpc.name, rpc.echo_id, code.name, cause)
        if rpc.closed or context.done():
            raise asyncio.CancelledError  # there is nobody to answer
        answer = answer_to(cause, rpc, monotonic(), context.trailing_metadata())
        try:
            await context.abort(answer.code, answer.message, answer.trailers)
        except grpc.aio.InternalError:  # the client has gone a moment ago; by itself grpc logs that
            raise asyncio.CancelledError from None


async def _pass_on(messages: Any, write: Callable[[Any], Awaitable[None]]) -> None:
    try:
        async for message in messages:
            await write(message)
    except BaseException:
        await messages.aclose()  # its clean-up belongs into the scope of the call
        raise


class Watched:
    """The context of a stream: what goes through it is a sign of life. All else is grpc's own."""

    __slots__ = ("_context", "_read", "_rpc", "_write")

    def __init__(self, context: Any, rpc: Rpc) -> None:
        self._context = context
        self._rpc = rpc
        self._read = context.read
        self._write = context.write

    async def read(self) -> Any:
        message = await self._read()
        self._rpc.touched = monotonic()
        return message

    async def write(self, message: Any) -> None:
        await self._write(message)
        self._rpc.touched = monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Requests:
    """The requests of a stream: each is a sign of life."""

    __slots__ = ("_messages", "_rpc", "_source")

    def __init__(self, source: Any, rpc: Rpc) -> None:
        self._source = source
        self._rpc = rpc
        self._messages: Any = None  # who reads by the context must not have a generator left over

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        if self._messages is None:
            self._messages = self._source.__aiter__()
        message = await self._messages.__anext__()
        self._rpc.touched = monotonic()
        return message

    async def aclose(self) -> None:
        """Nobody reads on. By itself grpc would leave that to the garbage collector."""
        if self._messages is not None:
            await self._messages.aclose()
