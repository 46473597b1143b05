"""A connector of ours, for sessions that others make: most libraries on top of aiohttp take one."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from holdfast.adapters.aiohttp.connecting import CURRENT, Dialled, Dialling
from holdfast.adapters.aiohttp.errors import ERRORS
from holdfast.domain.instant import Duration
from holdfast.domain.phases import DEFAULT_SHARES, Shares
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.net.phased import blamed
from holdfast.runtime.net.resolver import Resolver, default_resolver
from holdfast.runtime.outbound import Options, Outbound
from holdfast.runtime.scope import Scope

__all__ = ["HoldfastConnector"]


class HoldfastConnector(aiohttp.TCPConnector):
    """A `TCPConnector` that looks names up and connects within what is left, phase by phase.

    For a session that is not instrumented it does what a connector can: each request is told what
    is left and who it is, and waiting for a place, names, addresses, proxy and TLS are bounded. A
    spent share arrives as aiohttp's `ConnectionTimeoutError`, with a `PhaseTimeout` as its cause.
    What is sent and read after that is bounded by the scope around it, which is not told the phase.

    Args:
        service: see `instrument`, as for all but the last.
        wire: see there.
        refuse_below: see there.
        reserve: see there.
        shares: see there.
        observer: is told of every connection that is taken or made; `instrument` has its own.
        resolver: who looks names up; the one of the process when none is given.
        options: what a `TCPConnector` takes; its `socket_factory` is not used.

    Raises:
        ValueError: a number of seconds is negative.
    """

    def __init__(
        self,
        *,
        service: str = "",
        wire: WireSettings = DEFAULT_WIRE,
        refuse_below: Duration = 0.0,
        reserve: Duration = 0.0,
        shares: Shares = DEFAULT_SHARES,
        observer: TrailObserver | None = None,
        resolver: Resolver | None = None,
        **options: Any,
    ) -> None:
        kept = Options(service, wire, refuse_below, reserve, True, shares, observer)
        self._outbound = Outbound(kept, ERRORS)
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        self._dialled = Dialled(self, resolver or default_resolver())
        vars(self).update(self._dialled.fields())
        self.connect = self._connect  # type: ignore[method-assign]

    async def _connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        around = CURRENT.get()
        session: Any = req._session
        if around is not None and around.session is session:
            return await self._dialled.connect(req, traces, timeout)
        call = Dialling(self._outbound, session, req.method, req.url)
        token = CURRENT.set(call)
        try:
            call.admit()
            async with Scope(call.name):
                try:
                    connection = await self._dialled.connect(req, traces, timeout)
                except asyncio.CancelledError:
                    blamed(call.trail, call.now())
                    raise
        except BaseException as exc:
            if isinstance(exc, Exception):
                late = isinstance(exc, TimeoutError) and exc.errno is None
                call.explained(exc, late=late)
            call.done(exc)
            raise
        finally:
            CURRENT.reset(token)
        call.done()
        return connection
