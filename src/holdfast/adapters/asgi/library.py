"""Library mode: the life of a process inside a server that was started by its own command.

    from holdfast.adapters.asgi import LifecycleMiddleware

    app = LifecycleMiddleware(app)          # and then as always: uvicorn shop.main:app

Rule 1. The first SIGTERM or SIGINT is held back. The process is unready at once and the hooks of
        the stop run; every response announces that its connection ends; when clients have left,
        the server hears of the signal. The second one goes straight through.
Rule 2. Components, hooks and health belong to a host that starts with the application and is
        `holdfast.lifecycle.current()`. It is done before the server sees its lifespan end.
Rule 3. Where the signals cannot be taken, that is said in the log, once, and the rest holds from
        the moment at which the server ends the lifespan: too late for connections to be told.
Rule 4. Where a host runs already (`holdfast serve`), nothing is done at all.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from holdfast.adapters.asgi.gate import Gate
from holdfast.adapters.asgi.health import HealthPages
from holdfast.adapters.asgi.lifespan import Lifespan
from holdfast.adapters.asgi.session import Session
from holdfast.adapters.asgi.types import App, Receive, Send, ServerScope
from holdfast.domain.lifecycle.settings import HealthSettings, StopSettings
from holdfast.domain.lifecycle.stopbudget import StopBudget, stop_budget
from holdfast.runtime.chained import ELSEWHERE
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle import ComponentFailed, Host, HostTerms, Journal, LogReader
from holdfast.runtime.tasks import aside

__all__ = ["LifecycleMiddleware"]

_log: Final = logging.getLogger("holdfast.lifecycle")


class LifecycleMiddleware:
    """See the module. Put it outermost; `HoldfastMiddleware` may be inside of it or around it.

    Args:
        app: the application.
        service: name of the service, for records and causes.
        stop: the times of a stop. `grace` is what the platform gives, and where the server has a
            limit of its own (`--graceful-timeout` of gunicorn) no more than that.
        health: the paths of the pages of health.
        host: makes the host, for components that start before the application. Called once for
            each lifespan; its times are set from `stop`.
        details: whether the page of readiness shows the errors of checks, and which signal came.
    """

    def __init__(
        self,
        app: App,
        *,
        service: str = "",
        stop: StopSettings | None = None,
        health: HealthSettings | None = None,
        host: Callable[[], Host] | None = None,
        details: bool = False,
    ) -> None:
        self.app = app
        self._service = service
        self._stop = StopSettings() if stop is None else stop
        self._health = HealthSettings() if health is None else health
        self._make = host or self._own_host
        self._details = details
        self._entry: App = self._first
        self._session: Session | None = None
        self._told: set[str] = set()

    @property
    def host(self) -> Host | None:
        """The host of the present lifespan; none before it, and where another one was there."""
        return None if self._session is None else self._session.host

    async def __call__(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server, or its lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._entry(scope, receive, send)

    # -- with a lifespan -------------------------------------------------------------------------

    async def _lifespan(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        if driver_of(asyncio.get_running_loop()).host is not None:
            self._entry = self.app
            await self.app(scope, receive, send)
            return
        await receive()
        application = Lifespan(self.app, scope)
        session = self._open(application)
        self._warn(session.take_signals(), "")
        try:
            if why := await _up(session.host):
                await send({"type": "lifespan.startup.failed", "message": why})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await session.server_gone()
            if application.failure:
                failed = "lifespan.shutdown.failed"
                await send({"type": failed, "message": application.failure})
            else:
                await send({"type": "lifespan.shutdown.complete"})
        finally:
            session.signals.give_back()

    # -- without one -----------------------------------------------------------------------------

    async def _first(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        """The first request of a server that has no lifespan, or has it switched off."""
        if driver_of(asyncio.get_running_loop()).host is not None:
            self._entry = self.app
        else:
            session = self._open(None)
            if why := session.take_signals():
                # Nothing will ever tell of a stop, so a host would never end.
                self._warn(why, ", and there is no lifespan: no host runs here")
                self._entry = HealthPages(self.app, _ready, self._health)
                self._session = None
            else:
                # Not in the task of this request, whose end must not be the end of the process.
                starting = aside(session.host.start(), name="holdfast start")
                starting.add_done_callback(lambda _: aside(session.without_lifespan(), name="stop"))
                await asyncio.wait([starting])
        await self._entry(scope, receive, send)

    # -- both ------------------------------------------------------------------------------------

    def _own_host(self) -> Host:
        return Host(self._service, journal=Journal(LogReader()))

    def _open(self, application: Lifespan | None) -> Session:
        stop, host = self._stop, self._make()
        budget = _budget(stop)
        host.terms = HostTerms(
            start=stop.start, drain=budget.lame_duck + budget.drain, cleanup=budget.cleanup
        )
        host.health.cache = self._health.cache
        host.health.timeout = self._health.check_timeout
        gate = Gate(self.app, returning=stop.returning, retry_after=stop.retry_after)
        self._session = session = Session(host, gate, stop, budget.lame_duck)
        if application is not None:
            host.add("application", application, serves=False)
        host.add("server", session.server)

        async def report() -> Mapping[str, Any]:
            return (await host.health.ready()).as_dict()

        def why() -> str:
            # Never who sent the signal.
            if not host.stopping:
                return ""
            return host.brief if self._details else str(host.phase)

        self._entry = HealthPages(
            gate,
            report,
            self._health,
            stopping=why,
            retry_after=stop.retry_after,
            details=self._details,
        )
        return session

    def _warn(self, why: str, more: str) -> None:
        if why and why not in self._told:
            self._told.add(why)
            # In a thread it is a test, nearly always, and there is nothing that one could do.
            _log.log(
                logging.INFO if why == ELSEWHERE else logging.WARNING,
                "the signals of this server cannot be taken: %s%s. A stop begins here only when "
                "the server ends the lifespan; clients are not told before it closes their "
                "connections. `holdfast serve` has no such limit",
                why,
                more,
            )


def _budget(stop: StopSettings) -> StopBudget:
    return stop_budget(
        grace=stop.grace,
        cleanup=stop.cleanup,
        base=math.inf if stop.base is None else stop.base,
        cap=stop.cap,
        lame_duck=stop.lame_duck,
        lame_duck_least=stop.lame_duck_least,
    )


async def _up(host: Host) -> str:
    """Start; why it is not up, empty when it is."""
    try:
        await host.start()
    except ComponentFailed as error:
        return str(error)
    return "" if not host.stopping else f"a stop came while it started: {host.cause}"


async def _ready() -> Mapping[str, Any]:
    return {"status": "ready", "why": "", "checks": {}}
