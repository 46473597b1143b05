"""The life of a server of grpc.aio, as a component of a host.

    carrier = GrpcCarrier()
    server = grpc.aio.server(interceptors=[carrier])
    health = grpc_health.v1.health.aio.HealthServicer()     # where grpcio-health-checking is there
    host.add("grpc", GrpcServer(server, calls=carrier, health=health))

gRPC has no signal handling and a stop of its own: two GOAWAYs, then what is in flight until the
grace is over. It loses calls in two ways.

A call whose stream arrives between the two GOAWAYs is answered with CANCELLED, which clients do not
try again by default; so first the health service says NOT_SERVING, clients and load balancers that
watch it go elsewhere, and the server is told to stop after a lame duck.

And a connection that has got its GOAWAY is closed with the last of its answers, whether or not the
client has read them. When the client sends anything meanwhile (a window update will do), its kernel
is told to reset the connection, and throws away what was not read yet: on two busy cores, 17 of
2,400 calls that were answered in full. So with `calls` the server stops only when nothing is in
flight: an idle connection is closed when its client has answered a ping, and so read everything.

Handlers of streams are told as soon as the stop begins (`stop_begun`). What is in flight at the end
of the drain is cut with the cause `shutdown`, and answered UNAVAILABLE, before the server goes.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import grpc.aio

from holdfast.adapters.grpc_server.calls import GrpcCalls
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.ports.gate import Tell
from holdfast.runtime.bell import Bell
from holdfast.runtime.driver import driver_of
from holdfast.runtime.tasks import aside

__all__ = ["GrpcHealth", "GrpcServer"]

_LATE: Final[Duration] = 0.2
"""Seconds of the drain that are left for what is cut: to end, and to be answered. And as many again
for what even then does not end, and is cancelled by grpc."""

_FLUSH: Final[Duration] = 0.1
"""Seconds between the end of the last handler and the GOAWAY."""


_ANY: Final[Duration] = 3600.0


class GrpcHealth(Protocol):
    """As much of `grpc_health.v1.health.aio.HealthServicer` as is needed."""

    async def enter_graceful_shutdown(self) -> None:
        """Say NOT_SERVING for everything, whatever is set from then on."""
        ...


class GrpcServer:
    """A component that serves by grpc.aio.

    Args:
        server: with its services and ports, not started.
        calls: the interceptor that the server was made with; without it what is answered last
            may be lost (see the module).
        health: its health service, where it has one.
        lame_duck: seconds between NOT_SERVING and the stop; no more than half of the time there is.
        tell: is told of each step.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        *,
        calls: GrpcCalls | None = None,
        health: GrpcHealth | None = None,
        lame_duck: Duration = 1.0,
        tell: Tell | None = None,
    ) -> None:
        self._server = server
        self._calls = calls
        self._health = health
        self._lame_duck = lame_duck
        self._tell = tell
        self._bell: Bell | None = None
        self._begun: Instant | None = None
        self._hurried = False
        self._stopping = False

    async def start(self) -> None:
        """Accept calls."""
        await self._server.start()

    async def prepare(self, request: ShutdownRequest) -> None:
        """Tell whoever watches the health service."""
        await self._announce()

    async def _announce(self) -> None:
        if self._begun is None:
            self._begun = driver_of(asyncio.get_running_loop()).now()
            self._bell = Bell()
            if self._calls is not None:
                self._calls.announce()
            if self._health is not None:
                await self._health.enter_graceful_shutdown()
            self._say("announce", "NOT_SERVING" if self._health is not None else "nobody is told")

    async def stop(self, deadline: Instant) -> None:
        """Wait for clients to go, then stop; calls are cancelled at the instant `deadline`."""
        await self._announce()
        now = driver_of(asyncio.get_running_loop()).now
        assert self._begun is not None
        assert self._bell is not None
        until = self._begun + min(self._lame_duck, max(0.0, deadline - self._begun) / 2)
        if not self._hurried and now() < until:
            await self._bell.wait(until)
        self._say("lame_duck_over", "new calls are refused")
        if self._calls is not None:
            await self._empty(self._calls, deadline)
        self._stopping = True
        grace = 0.0 if self._hurried else max(0.0, deadline - _LATE - now())
        await self._server.stop(grace)
        self._say("done", "")

    async def _empty(self, calls: GrpcCalls, deadline: Instant) -> None:
        """Turn new calls away, and let go of those that are in flight."""
        now = driver_of(asyncio.get_running_loop()).now
        self._bell = idle = Bell()
        calls.close(idle.ring)
        if calls.in_flight and not self._hurried:
            await idle.wait(deadline - 2 * _LATE)
        if calls.in_flight and (found := calls.cut()):
            self._say("deadline", f"{found} calls are cut")
            await idle.wait(min(now() + _LATE, deadline - _LATE))
        # A handler that has returned is not an answer that has left.
        await Bell().wait(min(now() + _FLUSH, deadline - _LATE))

    async def wait(self) -> None:
        """Return when the server has stopped by itself."""
        # With a time-out, since whoever is cancelled while he waits without one cancels the future
        # that grpc waits for when it is stopped.
        while await self._server.wait_for_termination(_ANY):
            pass

    def hurry(self) -> None:
        """Cancel the calls that are under way."""
        self._hurried = True
        if self._bell is not None:
            self._bell.ring()
        if self._stopping:  # a second call shortens the grace of the first
            aside(self._server.stop(0.0), name="holdfast grpc")

    def _say(self, step: str, detail: str) -> None:
        if self._tell is not None:
            self._tell("drain.step", step, detail)
