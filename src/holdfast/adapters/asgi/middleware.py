"""The middleware: from a connection of the server to a scope, and from its outcome to an answer."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from holdfast.adapters.asgi.answers import status_of
from holdfast.adapters.asgi.debug import debug_page
from holdfast.adapters.asgi.exchange import Exchange
from holdfast.adapters.asgi.request import Request
from holdfast.adapters.asgi.socket import Socket
from holdfast.adapters.asgi.terms import Terms
from holdfast.adapters.asgi.types import App, Receive, Send, ServerScope
from holdfast.domain.cause import Cause
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.policy import DEFAULT_POLICY, Policy
from holdfast.runtime.driver import Driver, driver_of

__all__ = ["HoldfastMiddleware"]

_WATCH_AFTER: Final[Duration] = 0.01
"""Seconds after which a request that is still open begins to watch for its client to go. Most are
answered before, and then the watch costs nothing."""

_log: Final = logging.getLogger("holdfast.asgi")


class HoldfastMiddleware:
    """Gives every request a deadline, an identity and an end; pure ASGI, to be put outermost.

    The deadline is what the caller sent, capped by the policy, counted from the arrival of the
    first byte where the server tells that (`holdfast serve` does). The handler is cancelled when it
    is spent, and when the client goes away.

    Args:
        app: the application.
        policy: limits by route; `holdfast.domain.policy.DEFAULT_POLICY` by default.
        service: name of this hop in causes and timings, over that of the policy.
        debug: whether `/debug/holdfast/tree` answers to clients on this machine.

    Attributes:
        counts: requests by what became of them.
    """

    def __init__(
        self, app: App, policy: Policy | None = None, *, service: str = "", debug: bool = False
    ) -> None:
        self.app = app
        self._debug = debug
        self.counts: Counter[str] = Counter()
        self._service = service
        self._watches: deque[tuple[Instant, Exchange]] = deque()
        self._watched_by: Driver | None = None
        self.policy = policy or DEFAULT_POLICY

    @property
    def policy(self) -> Policy:
        """The policy in force. It may be replaced at any time; requests under way keep theirs."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy.for_service(self._service) if self._service else policy
        self._terms = Terms(self._policy, self.counts)
        self._off = self._policy.mode == "off"
        self.debug = self._debug or self._policy.debug_tree

    async def __call__(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        kind = scope["type"]
        if self._off or kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif kind == "websocket":
            await self._serve(Socket(scope, receive, send, self._terms), True)
        elif self.debug and scope["path"].startswith("/debug/holdfast/"):
            await debug_page(scope, send, self.counts)
        else:
            await self._serve(Request(scope, receive, send, self._terms), False)

    async def _serve(self, exchange: Request | Socket, stream: bool) -> None:
        driver = driver_of(asyncio.get_running_loop())
        resolved = self._terms.of(exchange.asgi)
        cause = exchange.begin(driver, resolved, stream or bool(resolved.stream))
        if cause is None:
            self._watch(exchange, driver)
            error: BaseException | None = None
            try:
                await self.app(exchange.asgi, exchange.receive, exchange.send)
            except BaseException as exc:
                error = exc
            cause = exchange.conclude(error)
            if exchange.terms.observing:
                self._observe(exchange)
        if cause is not None:
            await exchange.answer(cause)
            self._log_end(exchange, cause)

    def _observe(self, exchange: Exchange) -> None:
        resolved = exchange.terms.of(exchange.asgi)
        if not resolved.stream and exchange.age() > resolved.budget(exchange.left):
            self.counts["would_exceed"] += 1

    def _log_end(self, exchange: Exchange, cause: Cause) -> None:
        self.counts[f"ended.{cause.kind}"] += 1
        _log.info(
            "%d %s request_id=%s: %s",
            status_of(cause),
            exchange.name,
            exchange.carried.identity.echo_id,
            cause.line(),
        )

    # -- watching for clients that go --------------------------------------------------------------

    def _watch(self, exchange: Exchange, driver: Driver) -> None:
        # The delay is the same for all, so a queue does, with one alarm for its head.
        if self._watched_by is not driver:
            self._watched_by, self._watches = driver, deque()
        due = driver.now() + _WATCH_AFTER
        self._watches.append((due, exchange))
        if len(self._watches) == 1:
            driver.alarm(due, _watcher(self._watches, driver))


def _watcher(watches: deque[tuple[Instant, Exchange]], driver: Driver) -> Callable[[], None]:
    def begin() -> None:
        now = driver.now()
        while watches and watches[0][0] <= now:
            _, exchange = watches.popleft()
            if exchange.outcome is None and not exchange.complete:
                exchange.reader().read_ahead()
        if watches:
            driver.alarm(watches[0][0], begin)

    return begin
