"""What is in flight on a server of grpc.aio, so that its end can be waited for."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

import grpc
import grpc.aio

from holdfast.adapters.grpc_server.terms import Stop

__all__ = ["GrpcCalls", "behavior_of", "remade"]

_KINDS: Final = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
_MAKERS: Final[dict[str, Callable[..., Any]]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}
_MOST: Final = 4096
"""Methods that are remembered; a generic handler may answer to any name."""


def behavior_of(handler: Any) -> Callable[..., Any]:
    """The function of a handler: it has one of four."""
    found: Callable[..., Any] = getattr(handler, _kind(handler))
    return found


def _kind(handler: Any) -> str:
    return _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]


def remade(handler: Any, behavior: Callable[..., Any]) -> Any:
    """The same handler with another function."""
    maker = _MAKERS[_kind(handler)]
    return maker(behavior, handler.request_deserializer, handler.response_serializer)


class GrpcCalls(grpc.aio.ServerInterceptor):
    """Counts the calls that are in flight, and turns new ones away while the server drains.

    Only calls to handlers of `grpc.aio` are counted, which are coroutines and async generators. A
    plain function, which grpc runs in a thread, is served as it is.

    Where calls are to have deadlines as well, there is `GrpcCarrier`, which does this too.

    Attributes:
        running: of the calls that are in flight, those of coroutines.
        idle: is called when none is in flight, once new ones are turned away.
        ending: whether the server stops.
    """

    def __init__(self) -> None:
        self.running = 0
        self.ending = Stop()
        self.idle: Callable[[], object] | None = None
        self._methods: dict[str, tuple[Any, Any]] = {}

    @property
    def in_flight(self) -> int:
        """Calls whose handlers run, or whose answers are about to leave."""
        return self.running

    # -- the end, for the server -----------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether the stop has begun. To be read in any thread."""
        return self.ending.begun

    async def stop_begun(self) -> None:
        """Wait until the stop begins; from then on return at once. For streams, which end then."""
        await self.ending.wait()

    def announce(self) -> None:
        """The stop has begun: tell those who wait for it. New calls are still served."""
        self.ending.begin()

    def close(self, idle: Callable[[], object] | None = None) -> None:
        """Turn new calls away with UNAVAILABLE; `idle` is called when none is in flight."""
        self.ending.begin()
        self.ending.closed = True
        self.idle = idle
        self.look()

    def cut(self) -> int:
        """End what is in flight, as far as that can be told why; how many there were."""
        self.ending.cut = True
        return 0

    # -- for grpc --------------------------------------------------------------------------------

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of a call; for grpc."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self._known(handler_call_details.method, handler)

    def _known(self, path: str, handler: Any) -> Any:
        """The handler, wrapped: once for each method, as most servers have the same for ever."""
        known = self._methods.get(path)
        if known is None or known[0] is not handler:
            if len(self._methods) >= _MOST:
                self._methods.clear()
            self._methods[path] = known = (handler, self._wrapped(path, handler))
        return known[1]

    def _wrapped(self, path: str, handler: Any) -> Any:
        inner = behavior_of(handler)
        if inspect.isasyncgenfunction(inner):
            return remade(handler, self._many(inner))
        if inspect.iscoroutinefunction(inner):
            return remade(handler, self._one(inner))
        return handler

    def _one(self, inner: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        async def counted(request: Any, context: Any) -> Any:
            await self._admit(context)
            with self._counted():
                return await inner(request, context)

        return counted

    def _many(self, inner: Callable[[Any, Any], AsyncIterator[Any]]) -> Any:
        async def counted(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._admit(context)
            with self._counted():
                async for message in inner(request, context):
                    yield message

        return counted

    async def _admit(self, context: Any) -> None:
        if self.ending.closed:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining")

    @contextmanager
    def _counted(self) -> Generator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.look()

    def look(self) -> None:
        """A call has ended."""
        if self.idle is not None and not self.in_flight:
            self.idle()
