"""One request of `aiohttp.web`: its scope, its signs of life, and what became of it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from aiohttp import web

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.wire.inbound import raw_headers
from holdfast.runtime.driver import driver_of
from holdfast.runtime.idling import IdleWatch
from holdfast.runtime.served import Served
from holdfast.runtime.terms import Terms

__all__ = ["EXCHANGE", "Exchange", "prepare"]

_LOOK_EVERY: Final[Duration] = 0.05
"""Seconds between two looks at whether the client is there."""

_AT_ONCE: Final = 65_536
"""Bytes of a body that are handed over without waiting for the client."""

_SIGNS: Final = ("write", "send_frame", "send_str", "send_bytes", "receive")
"""The methods of responses and WebSockets that are signs of life."""

_WEBSOCKET: Final[Any] = web.WebSocketResponse  # takes a parameter, which `isinstance` cannot know


class Exchange(Served):
    """See the module.

    Args:
        request: of aiohttp.
        terms: under which it is served.

    Attributes:
        request: as given.
        started: whether its response has begun.
        over: whether its handler has ended.
        answered: whether it was answered for the handler.
        socket: the WebSocket that it has become, where it has.
    """

    def __init__(self, request: web.Request, terms: Terms) -> None:
        self.request = request
        self.driver = driver_of(asyncio.get_running_loop())
        self.touched: Instant = self.driver.now()
        self.started = self.over = self.answered = False
        self.socket: web.WebSocketResponse[Any] | None = None
        self._idling: IdleWatch | None = None
        self._read = 0
        super().__init__(
            terms,
            raw_headers(request.headers.items()),
            request.method,
            request.path,
            self.touched,
            streams=_upgrades(request),
        )

    # -- while it is open ------------------------------------------------------------------------

    def begun(self) -> None:
        """Its scope is open: see to it that its client is there, and that it does not idle."""
        # Most are done before the first look.
        self.driver.alarm(self.touched + _LOOK_EVERY, self._look)
        if self.streams:
            self._watch_idle()

    def ended(self) -> None:
        """Its scope is closed."""
        self.over = True
        if self._idling is not None:
            self._idling.stop()
        self.observe(self.driver.now())

    def _look(self) -> None:
        if self.over:
            return
        if self.gone:
            self.terms.counts["disconnected"] += 1
            if not self.terms.observing:
                self.scope.cancel(kind=CauseKind.DISCONNECT)
        else:
            self.driver.alarm(self.driver.now() + _LOOK_EVERY, self._look)

    @property
    def gone(self) -> bool:
        """Whether the client has gone."""
        transport = self.request.transport
        return transport is None or transport.is_closing()

    def begins(self, response: web.StreamResponse) -> None:
        """Its handler lets a response begin."""
        self.started = True
        if response.content_type == "text/event-stream" and self.resolved.stream is None:
            self._become_stream()
        if self.streams and not isinstance(response, web.FileResponse):
            fields = vars(response)
            for name in _SIGNS:
                if (method := getattr(response, name, None)) is not None:
                    fields[name] = self._touching(method)
        if isinstance(response, _WEBSOCKET):
            self.socket = cast("web.WebSocketResponse[Any]", response)
        else:
            vars(response)["write_eof"] = self._completing(response.write_eof)

    def _become_stream(self) -> None:
        if self.streams:
            return
        self.streams = True
        if not self.terms.observing:
            self.scope.move_deadline(self.arrival + self.left)
            self._watch_idle()

    def _watch_idle(self) -> None:
        idle = self.resolved.limits.idle
        if idle != NEVER and not self.terms.observing:
            self.touched = self.driver.now()
            self._idling = IdleWatch(self.scope, idle, self._latest)

    def _latest(self) -> Instant:
        if (read := self.request.content.total_bytes) != self._read:
            self._read = read
            self.touched = self.driver.now()
        return self.touched

    def _touching(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        def touching(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            self.touched = self.driver.now()
            return method(*args, **kwargs)

        return touching

    def _completing(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        # What the handler does when the response is complete is its own affair.
        async def completing(*args: Any, **kwargs: Any) -> None:
            await method(*args, **kwargs)
            if not self.over:
                self.over = True
                self.touched = NEVER
                self.scope.lift()

        return completing

    def bound_sending(self, response: web.StreamResponse) -> None:
        """The handler has returned a response: it goes out within the limit, or not as a whole."""
        body = response.body if isinstance(response, web.Response) else b""
        small = body is None or (isinstance(body, bytes) and len(body) <= _AT_ONCE)
        end = self.scope.limit
        if end == NEVER or (small and isinstance(response, web.Response)):
            return
        request, counts, held = self.request, self.terms.counts, weakref.ref(response)

        def look() -> None:
            late = held()
            if late is None or request.transport is None or late._eof_sent:  # pyright: ignore[reportPrivateUsage]
                return
            counts["ended.deadline"] += 1
            request.transport.abort()

        self.driver.alarm(end, look)

    # -- its end ---------------------------------------------------------------------------------

    def answered_for(self, cause: Cause) -> web.StreamResponse:
        """What the client gets when the request has ended early."""
        self.answered = True
        made = self.answer(cause, self.driver.now())
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in made.headers}
        return web.Response(status=made.status, headers=headers, body=made.body)


EXCHANGE: Final = web.RequestKey("holdfast.exchange", Exchange)


async def prepare(request: web.Request, response: web.StreamResponse) -> None:
    """A response of `request` is about to begin."""
    exchange = request.get(EXCHANGE)
    if exchange is None or exchange.answered:
        return  # an answer for the handler has all that it needs
    headers = response.headers
    headers.setdefault("X-Request-ID", exchange.carried.identity.echo_id)
    if exchange.terms.timing:
        headers["Server-Timing"] = exchange.timing(exchange.driver.now()).decode("latin-1")
    if exchange.over:
        exchange.bound_sending(response)
    else:
        exchange.begins(response)


def _upgrades(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"
