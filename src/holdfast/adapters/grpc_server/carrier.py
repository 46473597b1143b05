"""The carrier of a server of grpc.aio: the context of each call, from its deadline and metadata.

    carrier = GrpcCarrier()
    server = grpc.aio.server(interceptors=[carrier])
    host.add("grpc", GrpcServer(server, calls=carrier))

It stands first among the interceptors: a generator is read in here (see `methods`), so those around
it would see a coroutine in its place.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from holdfast.adapters.grpc_server.calls import GrpcCalls, behavior_of, remade
from holdfast.adapters.grpc_server.methods import COMING, Method
from holdfast.adapters.grpc_server.rpc import Rpc
from holdfast.adapters.grpc_server.streamed import Streamed
from holdfast.adapters.grpc_server.terms import Rules
from holdfast.adapters.grpc_server.threads import ThreadMethod
from holdfast.domain.cause import CauseKind
from holdfast.domain.policy import Policy
from holdfast.runtime.clock import monotonic
from holdfast.runtime.driver import driver_of

__all__ = ["GrpcCarrier"]


class GrpcCarrier(Rules, GrpcCalls):
    """Gives every call of a server a deadline, an identity and an end, and counts them.

    Handlers of all four kinds are carried, as coroutines, as async generators, and as coroutines
    that use `context.read` and `context.write`. A plain function, which runs in a thread, has its
    context there, and cannot be cancelled: see `GrpcThreadCarrier`. One that streams its answers is
    answered for at its limit, and ends at its next message when its call is over.

    Args:
        policy: limits by route, which is the path of a method, `/shop.Orders/Get` or
            `/shop.Orders/*`; `holdfast.domain.policy.DEFAULT_POLICY` by default.
        service: name of this hop in causes and timings, over that of the policy.
        timings: whether a call that went well says in its trailing metadata what it spent
            (`server-timing`), to callers that said who they are or what they have left.
        pool: threads for plain functions that stream their answers; those of the event loop by
            default. Give the pool of the server here too, where it was made with one.

    Attributes:
        counts: calls by what became of them.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        service: str = "",
        timings: bool = True,
        pool: Executor | None = None,
    ) -> None:
        self._pool = pool
        GrpcCalls.__init__(self)
        Rules.__init__(self, policy, service=service, timings=timings)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def in_flight(self) -> int:
        """Calls whose handlers run, also in threads, or whose answers are about to leave."""
        return self.running + len(self.threads)

    def thread_done(self, call: object) -> None:
        """See `Rules`."""
        super().thread_done(call)
        loop = self._loop
        if self.ending.closed and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.look)

    def close(self, idle: Callable[[], object] | None = None) -> None:
        """See `GrpcCalls`."""
        self._loop = asyncio.get_running_loop()
        super().close(idle)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of a call; for grpc."""
        arrival = monotonic()
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = handler_call_details.method
        known = self._methods.get(path)
        served = known[1] if known is not None and known[0] is handler else None
        if served is None:
            served = self._known(path, handler)
        metadata = handler_call_details.invocation_metadata
        if isinstance(served, ThreadMethod):
            return served.handler(arrival, metadata)
        COMING.set((arrival, metadata))
        return served

    def cut(self) -> int:
        """End what is in flight with the cause `shutdown`; how many calls that were."""
        self.ending.cut = True
        found = 0
        driver = driver_of(asyncio.get_running_loop())
        driver.settle()
        for node in tuple(driver.root.below()):
            if isinstance(node, Rpc) and node.terms.ending is self.ending:
                found += node.cancel("the drain deadline has passed", kind=CauseKind.SHUTDOWN)
        return found

    def _renew(self) -> None:
        self._methods.clear()  # each is under the terms that it was made under

    def _wrapped(self, path: str, handler: Any) -> Any:
        inner = behavior_of(handler)
        streams = bool(handler.request_streaming), bool(handler.response_streaming)
        if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
            return remade(handler, Method(self, self, path, inner, streams).serve)
        if streams[1]:
            streamed = Streamed(self, inner, streams[0], self._pool)
            return remade(handler, Method(self, self, path, streamed.serve, streams).serve)
        return ThreadMethod(self, path, handler)
