"""What an HTTP request and a WebSocket have in common: how their scope opens, idles and ends."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from holdfast.adapters.asgi.inbox import Inbox
from holdfast.adapters.asgi.terms import Terms
from holdfast.adapters.asgi.types import Message, Receive, Send, ServerScope
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.policy import Resolved
from holdfast.domain.wire.inbound import Inbound
from holdfast.domain.wire.trace import identify
from holdfast.runtime.clock import fresh_span_id, fresh_trace_id
from holdfast.runtime.driver import Driver
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.scope import Scope

__all__ = ["Exchange"]

_LONGEST_NAME: Final = 128


class Exchange(Scope):
    """The scope of one request or connection, and the `receive` that its handler gets.

    Attributes:
        asgi: the scope of the server.
        arrival: instant of its first byte.
        left: seconds that the caller gave; infinite when it set no deadline.
        idle: seconds that may pass without a message; infinite when a total limit holds instead.
        complete: whether the client has all that it will get.
    """

    __slots__ = (
        "_ledger",
        "_name",
        "_receive",
        "_send",
        "arrival",
        "asgi",
        "at",
        "complete",
        "given",
        "grace",
        "hop",
        "idle",
        "inbox",
        "left",
        "reserve",
        "terms",
        "touched",
    )

    farewell = ""

    def __init__(self, asgi: ServerScope, receive: Receive, send: Send, terms: Terms) -> None:
        # Not super().__init__: the name is costly, and made when somebody asks.
        self.parent = self.children = self.cause = self.outcome = None
        self.limit = self.wish = NEVER
        self.opened_at = 0.0
        self.driver: Driver = None  # type: ignore[assignment]
        self.outer = self.task = self.mark = None
        self.baseline = self.delivered = 0
        self.tightens = self.settled = False
        self.special = True
        self.asgi = asgi
        self.terms = terms
        self._receive = receive
        self._send = send
        self._name = ""
        self._ledger: Ledger | None = None
        self.inbox: Inbox | None = None
        self.complete = False
        self.arrival: Instant = 0.0
        self.touched: Instant = 0.0
        self.left: Duration = NEVER
        self.idle: Duration = NEVER

    @property
    def name(self) -> str:  # type: ignore[override]
        """Method and path."""
        if not self._name:
            asgi = self.asgi
            self._name = f"{asgi.get('method', 'WS')} {asgi['path']}"[:_LONGEST_NAME]
        return self._name

    @property
    def ledger(self) -> Ledger:  # type: ignore[override]
        """What it learnt from hops below; made when a client first asks for it."""
        if self._ledger is None:
            self._ledger = Ledger()
        return self._ledger

    # -- opening ---------------------------------------------------------------------------------

    def begin(self, driver: Driver, resolved: Resolved, stream: bool) -> Cause | None:
        """Open the scope; the cause when it must not begin.

        Args:
            driver: of the running loop.
            resolved: limits of the policy.
            stream: whether an idle limit holds instead of the total one.
        """
        terms, now = self.terms, driver.now()
        inbound = terms.codec.read(self.asgi["headers"])
        limits = resolved.limits
        self.hop = terms.hop
        self.arrival = min(self.asgi.get("holdfast.arrival", now), now)
        budget = limits.request
        if inbound.left is not None:
            self.left = inbound.left
        if stream:
            budget, self.idle = NEVER, limits.idle
        if self.left < budget:
            budget = self.left
        if terms.observing:
            budget = self.idle = NEVER
        self.at = self.arrival + budget
        self.grace = limits.grace
        self.reserve = limits.reserve
        self.given = self._identify(inbound)
        if self.at - now < limits.refuse_below and not terms.observing:
            self.driver = driver
            elapsed = now - self.arrival
            what = f"not begun: {format_duration(self.at - now)} left"
            return Cause(CauseKind.DEADLINE, self.name, self.hop, now, budget, elapsed, what)
        task = asyncio.current_task()
        assert task is not None, "a server runs its application in a task"
        try:
            self.enter(task)
        except ScopeEnded as ended:
            return ended.cause
        if self.idle != NEVER:
            self._watch_idle(now)
        return None

    def _identify(self, inbound: Inbound) -> Carried:
        if inbound.malformed:
            self.terms.counts["malformed_header"] += len(inbound.malformed)
        identity = identify(
            inbound.trace,
            span_id=fresh_span_id(),
            new_trace=fresh_trace_id,
            sample=self.terms.sample,
        )
        return Carried(identity, inbound.stage, inbound.baggage)

    # -- reading ---------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The `receive` of the handler."""
        message = await self.reader().receive()
        self.touched = self.driver.now()
        return message

    def reader(self) -> Inbox:
        """The one reader of what the client sends."""
        if self.inbox is None:
            self.inbox = Inbox(self._receive, self._client_gone, self.farewell)
        return self.inbox

    def _client_gone(self, told: bool) -> None:
        if self.complete or self.outcome is not None:
            return
        self.complete = True  # whatever is sent now goes nowhere
        self.terms.counts["disconnected"] += 1
        if not self.terms.observing:
            self._end_for_gone(told)

    def _end_for_gone(self, told: bool) -> None:
        """The client has gone; `told` when the handler has read that itself."""
        raise NotImplementedError

    # -- idling ----------------------------------------------------------------------------------

    def become_stream(self) -> None:
        """From now on the idle limit holds, and of total limits only the caller's."""
        if self.idle != NEVER or self.terms.observing:
            return
        self.idle = self.terms.of(self.asgi).limits.idle
        self.move_deadline(self.arrival + self.left)
        self._watch_idle(self.driver.now())

    def _watch_idle(self, now: Instant) -> None:
        self.touched = now
        if self.idle != NEVER:
            self.driver.alarm(now + self.idle, self._look_idle)

    def _look_idle(self) -> None:
        if self.outcome is not None or self.complete:
            return
        now, due = self.driver.now(), self.touched + self.idle
        if due > now:
            self.driver.alarm(due, self._look_idle)
        else:
            what = f"nothing was sent or read for {format_duration(self.idle)}"
            self.driver.begin(self, self.cause_of(CauseKind.DEADLINE, now, what))

    # -- leaving ---------------------------------------------------------------------------------

    def conclude(self, error: BaseException | None) -> Cause | None:
        """Close the scope; the cause when that is what ended it.

        Raises:
            BaseException: `error`, when the handler failed by itself.
        """
        if self.inbox is not None:
            self.inbox.stop()
        try:
            self.leave(error)
        except ScopeEnded as ended:
            return ended.cause
        if error is None:
            return None
        cause = ended_by(error)
        if cause is None:
            raise error
        return cause


def ended_by(error: BaseException | None) -> Cause | None:
    """The cause in an error of ours, or in a group of nothing else."""
    if isinstance(error, ScopeEnded):
        return error.cause
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        causes = [ended_by(inner) for inner in group.exceptions]
        return causes[0] if all(causes) else None
    return None
