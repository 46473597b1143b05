"""The carrier of an `aiohttp.web` application: the context of each request, from its headers.

    app = web.Application()
    AiohttpCarrier().install(app)

The deadline is what the caller sent, capped by the policy. The handler is cancelled when it is
spent, and when the client goes away; the answer is then a problem document, as from the ASGI
middleware, or the connection is cut where a response had begun.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.policy import DEFAULT_POLICY, Policy
from holdfast.domain.wire.answer import answer_to, status_of
from holdfast.domain.wire.inbound import raw_headers
from holdfast.domain.wire.timing import hop_timing
from holdfast.domain.wire.trace import identify
from holdfast.runtime.ambient import use
from holdfast.runtime.clock import fresh_span_id, fresh_trace_id
from holdfast.runtime.driver import driver_of
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.scope import Scope
from holdfast.runtime.terms import Terms

__all__ = ["AiohttpCarrier"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log: Final = logging.getLogger("holdfast.aiohttp")
_LONGEST_NAME: Final = 128
_LOOK_EVERY: Final[Duration] = 0.05
"""Seconds between two looks at whether the client is there."""


class _Exchange:
    """One request: its scope, and what became of it.

    Args:
        request: of aiohttp.
        terms: under which it is served.
    """

    def __init__(self, request: web.Request, terms: Terms) -> None:
        self.request = request
        self.terms = terms
        self.driver = driver_of(asyncio.get_running_loop())
        self.arrival: Instant = self.driver.now()
        self.ledger = Ledger()
        self.started = self.over = self.answered = False
        self.left: Duration = NEVER
        headers = raw_headers(request.headers.items())
        self.left, malformed, ours = terms.codec.glance(headers)
        terms.counts["malformed_header"] += malformed
        inbound = terms.codec.read(ours)
        identity = identify(
            inbound.trace,
            span_id=fresh_span_id(),
            new_trace=fresh_trace_id,
            sample=terms.sample,
        )
        self.carried = Carried(identity, inbound.stage, inbound.baggage)
        self.scope = self._open()

    def _open(self) -> Scope:
        request, terms = self.request, self.terms
        resolved = terms.policy.limits(request.path, request.method)
        limits = resolved.limits
        budget = limits.request
        if resolved.stream or _upgrades(request) or terms.observing:
            budget = NEVER
        budget = min(budget, NEVER if terms.observing else self.left)
        name = f"{request.method} {request.path}"[:_LONGEST_NAME]
        name = "".join(c if c.isprintable() else "?" for c in name)
        scope = use(self.carried, name=name)
        scope.special = True
        scope.at = self.arrival + budget
        scope.hop = terms.hop
        scope.ledger = self.ledger
        scope.reserve = limits.reserve
        scope.grace = min(limits.grace, max(0.0, budget) / 2) if limits.grace else 0.0
        self.needed = limits.refuse_below
        return scope

    def refusal(self) -> Cause | None:
        """Why it must not begin, if so."""
        now, scope = self.driver.now(), self.scope
        if not self.needed or scope.at - now >= self.needed:
            return None
        self.terms.counts["refused.too_little"] += 1
        what = f"not begun: {format_duration(max(0.0, scope.at - now))} left"
        budget = scope.at - self.arrival
        return Cause(CauseKind.DEADLINE, scope.name, self.terms.hop, now, budget, 0.0, what)

    def watch(self) -> None:
        """Cancel the handler when the client has gone. Most are done before the first look."""
        self.driver.alarm(self.driver.now() + _LOOK_EVERY, self._look)

    def _look(self) -> None:
        if self.over:
            return
        if self.gone:
            self.terms.counts["disconnected"] += 1
            if not self.terms.observing:
                self.scope.cancel(kind=CauseKind.DISCONNECT)
        else:
            self.watch()

    @property
    def gone(self) -> bool:
        """Whether the client has gone."""
        transport = self.request.transport
        return transport is None or transport.is_closing()

    def timing(self) -> bytes:
        """Value of `Server-Timing`."""
        spent = self.driver.now() - self.arrival
        return hop_timing(self.terms.hop, self.terms.timing, spent, self.ledger.spent)

    def answer(self, cause: Cause) -> web.StreamResponse:
        """What the client gets when the request has ended early."""
        self.answered = True
        if self.ledger.below and not cause.below:
            cause = cause.with_below(*self.ledger.below)
        late = cause.kind is CauseKind.DEADLINE and self.left != NEVER
        made = answer_to(
            cause,
            self.carried.identity,
            self.timing(),
            spent=late and self.arrival + self.left - self.driver.now() <= self.scope.kept,
            details=self.terms.details,
            retry=self.terms.retry,
        )
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in made.headers}
        return web.Response(status=made.status, headers=headers, body=made.body)


_EXCHANGE: Final = web.RequestKey("holdfast.exchange", _Exchange)


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
        app.on_response_prepare.append(_prepare)

    async def _serve(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._policy.mode == "off":
            return await handler(request)
        exchange = _Exchange(request, self._terms)
        cause = exchange.refusal()
        if cause is not None:
            return self._ended(exchange, cause)
        request[_EXCHANGE] = exchange
        exchange.watch()
        cancelled: asyncio.CancelledError | None = None
        try:
            async with exchange.scope:
                return await handler(request)
        except ScopeEnded as ended:
            cause = ended.cause
        except asyncio.CancelledError as exc:
            if not exchange.gone:
                raise
            # aiohttp was told to cancel the handlers of clients that have gone.
            cancelled, cause = exc, exchange.scope.cause_of(CauseKind.DISCONNECT, 0.0)
        finally:
            exchange.over = True
            if (
                exchange.terms.observing
                and exchange.arrival + exchange.left < exchange.driver.now()
            ):
                self.counts["would_exceed"] += 1
        if cancelled is not None:
            self._note(exchange, cause)
            raise cancelled
        return self._ended(exchange, cause)

    def _ended(self, exchange: _Exchange, cause: Cause) -> web.StreamResponse:
        self._note(exchange, cause)
        transport = exchange.request.transport
        if exchange.started and transport is not None:
            # Cut, so that nobody takes a part for the whole.
            transport.abort()
        return exchange.answer(cause)

    def _note(self, exchange: _Exchange, cause: Cause) -> None:
        self.counts[f"ended.{cause.kind}"] += 1
        _log.info(
            "%d %s request_id=%s: %s",
            status_of(cause),
            exchange.scope.name,
            exchange.carried.identity.echo_id,
            cause.line(),
        )


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    exchange = request.get(_EXCHANGE)
    if exchange is None or exchange.answered:
        return  # an answer for the handler has all that it needs
    exchange.started = True
    headers = response.headers
    headers.setdefault("X-Request-ID", exchange.carried.identity.echo_id)
    if exchange.terms.timing:
        headers["Server-Timing"] = exchange.timing().decode("latin-1")
    if response.content_type == "text/event-stream":
        exchange.scope.lift()


def _upgrades(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"
