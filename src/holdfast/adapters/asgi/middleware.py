"""The middleware: from a connection of the server to a scope, and from its outcome to an answer."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from holdfast.adapters.asgi.debug import debug_page
from holdfast.adapters.asgi.exchange import Exchange
from holdfast.adapters.asgi.request import Request
from holdfast.adapters.asgi.socket import Socket
from holdfast.adapters.asgi.types import App, Receive, Send, ServerScope
from holdfast.domain.cause import Cause
from holdfast.domain.instant import Duration
from holdfast.domain.policy import DEFAULT_POLICY, Policy
from holdfast.domain.wire.answer import status_of
from holdfast.runtime.terms import Terms

__all__ = ["HoldfastMiddleware"]

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
        retry_after: seconds after which a client may try again that was turned away.

    Attributes:
        counts: requests by what became of them.
        retry_after: see above; what is set anew holds with the next policy.

    Raises:
        TypeError: `policy` is no `Policy`.
    """

    def __init__(
        self,
        app: App,
        policy: Policy | None = None,
        *,
        service: str = "",
        debug: bool = False,
        retry_after: Duration = 1.0,
    ) -> None:
        self.app = app
        self.retry_after = retry_after
        self._debug = debug
        self.counts: Counter[str] = Counter()
        self._service = service
        self.policy = DEFAULT_POLICY if policy is None else policy

    @property
    def policy(self) -> Policy:
        """The policy in force. It may be replaced at any time; requests under way keep theirs."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if not isinstance(policy, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"policy must be a Policy, not {type(policy).__name__}; make one of a mapping with "
                "holdfast.domain.policy.policy_from_mapping"
            )
        self._policy = policy.for_service(self._service) if self._service else policy
        self._terms = Terms(self._policy, self.counts, self.retry_after)
        self._off = self._policy.mode == "off"
        self.debug = self._debug or self._policy.debug_tree

    async def __call__(self, scope: ServerScope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        kind = scope["type"]
        if self._off or kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        exchange: Request | Socket
        if kind == "websocket":
            exchange = Socket(scope, receive, send, self._terms)
            cause = exchange.begin(True)
        elif self.debug and scope["path"].startswith("/debug/holdfast/"):
            await debug_page(scope, send, self.counts)
            return
        else:
            exchange = Request(scope, receive, send, self._terms)
            cause = exchange.begin(False)
        if cause is None:
            error: BaseException | None = None
            try:
                await self.app(scope, exchange.receive, exchange.send)
            except BaseException as exc:
                error = exc
            try:
                cause = exchange.conclude(error)
            except BaseException:
                ended = exchange.failure or exchange.cause
                if ended is not None:
                    # It was over before. What the clean-up raised is for the log of the server.
                    await exchange.answer(ended)
                    self._log_end(exchange, ended)
                raise
            if exchange.terms.observing:
                self._observe(exchange)
        if cause is not None:
            if exchange.refusal:
                self.counts[f"refused.{exchange.refusal}"] += 1
            await exchange.answer(cause)
            self._log_end(exchange, cause)

    def _observe(self, exchange: Exchange) -> None:
        asgi = exchange.asgi
        resolved = exchange.terms.policy.limits(asgi["path"], asgi.get("method", ""))
        spent = exchange.driver.now() - exchange.arrival
        limit = exchange.left if exchange.streams else resolved.budget(exchange.left)
        if spent > limit:
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
