"""gunicorn with workers that stop in order.

    gunicorn -k holdfast.adapters.gunicorn.Worker shop.main:app

It is the uvicorn worker of `uvicorn-worker`, and differs in its stop:

    TERM       every response says that its connection ends, until clients have left; then the
               worker stops. Whatever is served is cancelled in time before gunicorn's
               `--graceful-timeout` kills, so that clean-up and the lifespan run. The original sets
               no time-out at all
    INT, QUIT  the worker stops without waiting for clients to leave. The original serves on until
               it is killed
    twice      what is still served is cancelled

Hooks, health and a journal come with `LifecycleMiddleware` in the application; where that is, it
holds the signal back itself, and nothing of this is done twice.
"""

from __future__ import annotations

import asyncio
import math
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from types import FrameType
from typing import Any, Final

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from uvicorn_worker import _workers  # type: ignore[import-untyped]  # pyright: ignore

from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.ports.gate import GateView
from holdfast.runtime.driver import driver_of
from holdfast.runtime.gated import GatedDrain
from holdfast.runtime.tasks import aside

__all__ = ["Worker"]

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]

_RESERVE: Final[Duration] = 5.0
"""Seconds of the graceful time-out that are kept for clean-up and the lifespan; a sixth at most."""
_QUICK: Final[Duration] = 1.0
"""Seconds for what is served when there is no time."""
_seams: Final[Any] = _workers
_PLAIN_SERVER: Final[Any] = _seams.Server
_PLAIN_WORKER: Final[Any] = _seams.UvicornWorker


class _Gate:
    """A `holdfast.ports.gate.Gate`: announces; the rest uvicorn does when it is told to stop."""

    def __init__(self, app: Any, server: Any) -> None:
        self._app = app
        self._server = server
        self._announcing = False
        self._silent = 0
        self._latest: Instant = -math.inf
        self._ring: Callable[[], None] = _nobody_waits

    async def __call__(self, scope: _Message, receive: Any, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = announced = False

        def sending(message: _Message) -> Awaitable[None]:
            nonlocal started, announced
            if not started and message["type"] == "http.response.start":
                started = True
                if self._announcing:
                    announced = True
                    headers = [*message.get("headers", ()), (b"connection", b"close")]
                    return send({**message, "headers": headers})
                self._silent += 1
            return send(message)

        if self._announcing:
            self._happened()
        try:
            await self._app(scope, receive, sending)
        finally:
            if started and not announced:
                self._silent -= 1
            if self._announcing:
                if not announced:
                    self._happened()
                self._ring()

    def _happened(self) -> None:
        self._latest = driver_of(asyncio.get_running_loop()).now()
        self._ring()

    def announce(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._announcing = True

    def look(self) -> GateView:
        if self._silent:
            self._latest = driver_of(asyncio.get_running_loop()).now()
        return GateView(len(self._server.server_state.tasks), 0, self._latest)

    def farewell(self) -> int:
        return 0  # uvicorn closes them with 1012 as soon as it stops

    def cut(self) -> list[str]:
        tasks = tuple(self._server.server_state.tasks)
        for task in tasks:
            task.cancel("the worker stops")
        return [task.get_name() for task in tasks]


class _Server(_PLAIN_SERVER):  # type: ignore[misc]
    """uvicorn's server, which hears of a signal when clients have left."""

    def __init__(self, config: Any, graceful: Duration) -> None:
        _PLAIN_SERVER.__init__(self, config)
        reserve = min(_RESERVE, graceful / 6)
        self._room = graceful - reserve
        terms = DrainTerms(most=self._room / 3, unwinding=min(1.0, reserve / 2))
        self.gate = _Gate(config.app, self)
        config.app = self.gate
        # Where the drain is not ours (a middleware that holds the signal back), this still holds.
        config.timeout_graceful_shutdown = self._room
        self._drain = GatedDrain(self.gate, lambda: terms)
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # In a handler, between any two instructions of the main thread.
        chained = sig == signal.SIGTERM and signal.getsignal(sig) != self.handle_exit
        self._loop.call_soon_threadsafe(self._heard, sig, chained)

    def _heard(self, sig: int, chained: bool) -> None:
        if chained or self.should_exit:
            self._exit(sig)
        elif self._drain.begun or sig != signal.SIGTERM:
            self.config.timeout_graceful_shutdown = _QUICK
            if self._drain.begun:
                self._drain.hurry()
            self._exit(sig)
        else:
            self._drain.begin(driver_of(self._loop).now() + self._room)
            aside(self._drain.finish(lambda: self._exit(sig)), name="holdfast drain")

    def _exit(self, sig: int) -> None:
        _PLAIN_SERVER.handle_exit(self, sig, None)  # others (sse-starlette) stand in there
        # uvicorn would send itself this signal when all is done, and the worker would die of it.
        self._captured_signals.clear()


class Worker(_PLAIN_WORKER):  # type: ignore[misc]
    """See the module."""

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = _Server(self.config, float(self.cfg.graceful_timeout))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, server.handle_exit, signal.SIGQUIT, None)
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)


def _nobody_waits() -> None:
    """No drain is under way."""
