"""The carrier of an `aiohttp.web` application: the context of each request, from its headers.

    app = web.Application()
    AiohttpCarrier().install(app)

The deadline is what the caller sent, capped by the policy. The handler is cancelled when it is
spent, and when the client goes away; the answer is then a problem document, as from the ASGI
middleware, or the connection is cut where a response had begun. Streams and WebSockets have an idle
limit instead of the policy's total one.

Not as with the ASGI middleware: a handler that does not end when it is cancelled is not answered
for, as aiohttp serves a connection in the task in which the handler runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from holdfast.adapters.aiohttp.exchange import EXCHANGE, Exchange, prepare
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import Duration
from holdfast.domain.policy import DEFAULT_POLICY, Policy
from holdfast.domain.wire.answer import status_of
from holdfast.domain.wire.ending import close_of, ended_by
from holdfast.runtime.terms import Terms

__all__ = ["AiohttpCarrier"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log: Final = logging.getLogger("holdfast.aiohttp")
_FAREWELL: Final[Duration] = 1.0
"""Seconds in which a client may say that it has heard that its WebSocket is closed."""


class AiohttpCarrier:
    """Gives every request of an application a deadline, an identity and an end.

    Args:
        policy: limits by route; `holdfast.domain.policy.DEFAULT_POLICY` by default.
        service: name of this hop in causes and timings, over that of the policy.
        retry_after: seconds after which a client may try again that was turned away.

    Attributes:
        counts: requests by what became of them.
    """

    def __init__(
        self, policy: Policy | None = None, *, service: str = "", retry_after: Duration = 1.0
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._service = service
        self._retry_after = retry_after
        self.policy = DEFAULT_POLICY if policy is None else policy

    @property
    def policy(self) -> Policy:
        """The policy in force. It may be replaced at any time; requests under way keep theirs."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy.for_service(self._service) if self._service else policy
        self._terms = Terms(self._policy, self.counts, self._retry_after)

    def install(self, app: web.Application) -> None:
        """Stand around everything that an application serves; before it is started.

        Raises:
            RuntimeError: it is started.
        """

        @web.middleware
        async def holdfast(request: web.Request, handler: Any) -> web.StreamResponse:
            return await self._serve(request, handler)

        app.middlewares.insert(0, holdfast)
        app.on_response_prepare.append(prepare)

    async def _serve(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._policy.mode == "off":
            return await handler(request)
        exchange = Exchange(request, self._terms)
        cause = exchange.refusal(exchange.driver.now())
        if cause is not None:
            return await self._ended(exchange, cause)
        request[EXCHANGE] = exchange
        try:
            async with exchange.scope:
                exchange.begun()
                return await handler(request)
        except asyncio.CancelledError:
            if exchange.gone:
                # aiohttp was told to cancel the handlers of clients that have gone.
                self._note(exchange, exchange.scope.cause_of(CauseKind.DISCONNECT, 0.0))
            raise
        except Exception as exc:
            cause = _cause_behind(exc)
            if cause is None:
                raise
            return await self._ended(exchange, cause)
        finally:
            exchange.ended()

    async def _ended(self, exchange: Exchange, cause: Cause) -> web.StreamResponse:
        self._note(exchange, cause)
        socket = exchange.socket
        if socket is not None:
            code, reason = close_of(cause, exchange.terms.details)
            with contextlib.suppress(TimeoutError):  # the connection is closed then
                async with asyncio.timeout(_FAREWELL):
                    await socket.close(code=code, message=reason.encode())
            return socket
        transport = exchange.request.transport
        gone = cause.kind is CauseKind.DISCONNECT
        if (exchange.started or gone) and transport is not None:
            # Cut, so that nobody takes a part for the whole.
            transport.abort()
        if gone:
            # There is nobody to answer; the number is for aiohttp's access log.
            exchange.answered = True
            return web.Response(status=status_of(cause))
        return exchange.answered_for(cause)

    def _note(self, exchange: Exchange, cause: Cause) -> None:
        self.counts[f"ended.{cause.kind}"] += 1
        _log.info(
            "%d %s request_id=%s: %s",
            status_of(cause),
            exchange.scope.name,
            exchange.carried.identity.echo_id,
            cause.line(),
        )


def _cause_behind(exc: Exception) -> Cause | None:
    """The cause in an error of ours, also where a handler has made a page with a 5xx of it."""
    if isinstance(exc, web.HTTPException):
        made_of = exc.__cause__ or exc.__context__
        return ended_by(made_of) if exc.status >= 500 else None
    return ended_by(exc)
