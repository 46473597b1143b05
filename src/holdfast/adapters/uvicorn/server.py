"""uvicorn as a component: its server, and the application that it starts and stops."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any, Final

from uvicorn.lifespan.on import LifespanOn
from uvicorn.server import Server

from holdfast.adapters.uvicorn.drainage import Drainage, Tell
from holdfast.adapters.uvicorn.lifespan import BoundLifespan
from holdfast.adapters.uvicorn.listener import Listener
from holdfast.adapters.uvicorn.settings import Settings
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.ports.component import ApplicationFailed
from holdfast.runtime.driver import driver_of
from holdfast.runtime.timers import Alarm

__all__ = ["UvicornApplication", "UvicornServer"]

_DATE_EVERY: Final[Duration] = 1.0


class UvicornApplication:
    """The lifespan of an ASGI application.

    Args:
        settings: of the server that calls it.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.loaded:
            settings.load()
        kind = settings.lifespan_class
        self.lifespan = (BoundLifespan if issubclass(kind, LifespanOn) else kind)(settings)

    async def start(self) -> None:
        """Run the start-up of the application.

        Raises:
            ApplicationFailed: it failed.
        """
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise ApplicationFailed("the start-up of the application failed; see its error above")

    async def stop(self, deadline: Instant) -> None:
        """Run its shutdown; whoever calls this bounds it.

        Raises:
            ApplicationFailed: it failed.
        """
        await self.lifespan.shutdown()
        if self.lifespan.should_exit:
            raise ApplicationFailed("the shutdown of the application failed; see its error above")


class UvicornServer(Server):
    """A component that serves, and stops without losing a request.

    Args:
        settings: how it serves.
        application: what it serves; started before this.
        sockets: bound; closed at the end.
        terms: gives the times of the drain when it begins.
        tell: is told of each step of the drain.
        cut: ends what is served at the deadline; cancels the tasks of requests by default.
        shared: whether other processes accept from the sockets as well.
        last: says when it stops whether nobody else serves what waits in a shared accept queue.
        handshake: seconds that a TLS handshake may take.

    Attributes:
        failure: why a socket cannot be listened on.
    """

    config: Settings

    def __init__(
        self,
        settings: Settings,
        application: UvicornApplication,
        sockets: Sequence[socket.socket],
        terms: Callable[[], DrainTerms],
        tell: Tell,
        *,
        cut: Callable[[], None] | None = None,
        shared: bool = False,
        last: Callable[[], bool] = bool,
        handshake: Duration = 5.0,
    ) -> None:
        super().__init__(settings)
        self._application = application
        self._listeners = [Listener(sock, shared=shared) for sock in sockets]
        self._terms = terms
        self._tell = tell
        self._cut = cut or self._cancel_requests
        self._handshake = handshake
        self._drainage: Drainage | None = None
        self._next_tick: Alarm | None = None
        self._last = last
        self.failure: OSError | None = None

    # -- the component ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Accept connections.

        Raises:
            OSError: a socket cannot be listened on.
        """
        config = self.config
        self._tick()
        try:
            for listener in self._listeners:
                await listener.open(
                    self._protocol,
                    backlog=config.backlog,
                    tls=config.ssl,
                    handshake=self._handshake,
                )
        except OSError as error:
            self.failure = error
            raise
        self.started = True

    async def prepare(self, request: ShutdownRequest) -> None:
        """Announce the stop on every connection."""
        self._begin(request.deadline)

    async def stop(self, deadline: Instant) -> None:
        """Drain; what is served is cut at the monotonic instant `deadline`."""
        drainage = self._drainage or self._begin(deadline)
        drainage.last = self._last
        try:
            await drainage.finish()
        finally:
            drainage.abandon()
            self.config.terms.counts["answered"] = self.server_state.total_requests
            if self._next_tick is not None:
                driver_of(asyncio.get_running_loop()).drop(self._next_tick)

    async def wait(self) -> None:
        """A server does not die by itself."""
        await asyncio.get_running_loop().create_future()

    def hurry(self) -> None:
        """Cut now whatever is open, if the drain has begun."""
        if self._drainage is not None:
            self._drainage.hurry()

    # -- the parts -------------------------------------------------------------------------------

    def _protocol(self, _loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(
            config=self.config,
            server_state=self.server_state,
            app_state=self._application.lifespan.state,
            _loop=_loop,
        )
        return made

    def _begin(self, deadline: Instant) -> Drainage:
        state, counts = self.server_state, self.config.terms.counts
        terms = self._terms()
        self._drainage = drainage = Drainage(
            terms,
            self.config.watch,
            self._listeners,
            lambda: state.connections,
            state.tasks,
            lambda: state.total_requests - counts["turned_away"],
            self._tell,
            self._cut,
        )
        # Frameworks look here for whether the server stops (sse-starlette also replaces this
        # method); nothing of uvicorn's own goes by it any more.
        self.handle_exit(signal.SIGTERM, None)
        drainage.begin(deadline)
        return drainage

    def _cancel_requests(self) -> None:
        for task in tuple(self.server_state.tasks):
            task.cancel("the server stops")

    def _tick(self) -> None:
        """The headers of every response: the date, and what the settings ask for."""
        date = [(b"date", formatdate(usegmt=True).encode())] if self.config.date_header else []
        self.server_state.default_headers = date + self.config.encoded_headers
        driver = driver_of(asyncio.get_running_loop())
        self._next_tick = driver.alarm(driver.now() + _DATE_EVERY, self._tick)
