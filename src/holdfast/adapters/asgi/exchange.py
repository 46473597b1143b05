"""What an HTTP request and a WebSocket have in common: how their scope opens, idles and ends."""

from __future__ import annotations

from collections.abc import Awaitable
from threading import Lock
from typing import Final, Literal, cast

from holdfast.adapters.asgi.inbox import Inbox
from holdfast.adapters.asgi.types import Message, Receive, Send, ServerScope
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.wire.ending import ended_by, is_late, request_name
from holdfast.domain.wire.trace import identify
from holdfast.runtime.clock import fresh_span_id, fresh_trace_id
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.idling import IdleWatch
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.scope import AMBIENT, Scope, running_task
from holdfast.runtime.terms import Terms

__all__ = ["Exchange"]

_DISCONNECTS: Final = ("ClientDisconnect", "ClientDisconnected", "WebSocketDisconnect")
"""Errors of frameworks (Starlette, Litestar) and servers (uvicorn) that say that the client has
gone, by name: none of them is imported here."""

_one_identity: Final = Lock()


class Exchange(Scope):
    """The scope of one request or connection, and the `receive` that its handler gets.

    Attributes:
        asgi: the scope of the server.
        arrival: instant of its first byte.
        ours: headers that say something to us.
        trace: its trace id, where nothing that the caller sent names it; else empty.
        left: seconds that the caller gave; infinite when it set no deadline.
        idle: seconds that may pass without a message; infinite when a total limit holds instead.
        complete: whether the client has all that it will get.
    """

    __slots__ = (
        "_given",
        "_ledger",
        "_name",
        "_receive",
        "_send",
        "arrival",
        "asgi",
        "at",
        "complete",
        "grace",
        "hop",
        "idle",
        "inbox",
        "left",
        "ours",
        "reserve",
        "terms",
        "touched",
        "trace",
    )

    farewell = ""
    streams: bool = False
    """Whether an idle limit holds instead of the policy's total one."""
    failure: Cause | None = None
    """Why the handler's own answer was held back or has no reader."""
    gone: bool = False
    """Whether the client left before it had everything."""
    refusal: Literal["", "expired", "too_little", "cancelled"] = ""
    """Why it was not begun."""
    _idling: IdleWatch | None = None
    _malformed: int = 0

    def __init__(self, asgi: ServerScope, receive: Receive, send: Send, terms: Terms) -> None:
        # Not super().__init__: the name is costly, and made when somebody asks.
        self.parent = self.children = self.cause = self.outcome = None
        self.limit = self.wish = NEVER
        self.opened_at = 0.0
        self.driver: Driver = None  # type: ignore[assignment]
        self.outer = self.task = self.mark = self.done = None
        self.baseline = self.delivered = 0
        self.tightens = self.settled = False
        self.special = True
        self.asgi = asgi
        self.terms = terms
        self._receive = receive
        self._send = send
        self._name = ""
        self._given: Carried | None = None
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
            self._name = request_name(asgi.get("method", "WS"), asgi["path"])
        return self._name

    @property
    def ledger(self) -> Ledger:  # type: ignore[override]
        """What it learnt from hops below; made when a client first asks for it."""
        if self._ledger is None:
            self._ledger = Ledger()
        return self._ledger

    @property
    def given(self) -> Carried:  # type: ignore[override]
        """Who the request is; read from the headers when somebody first asks."""
        if self._given is None:
            with _one_identity:  # a snapshot of the tree may ask from another thread
                if self._given is None:
                    self._given = self._identify()
        return self._given

    def _identify(self) -> Carried:
        inbound = self.terms.codec.read(self.ours)
        if inbound.malformed:
            malformed = len(inbound.malformed) - self._malformed
            self.terms.counts["malformed_header"] += malformed
        identity = identify(
            inbound.trace,
            span_id=fresh_span_id(),
            new_trace=lambda: self.trace or fresh_trace_id(),
            sample=self.terms.sample,
        )
        return Carried(identity, inbound.stage, inbound.baggage)

    # -- opening ---------------------------------------------------------------------------------

    def begin(self, stream: bool) -> Cause | None:
        """Open the scope; the cause when it must not begin.

        Args:
            stream: whether an idle limit holds instead of the total one.
        """
        task = running_task()
        assert task is not None, "a server runs its application in a task"
        driver = driver_of(task.get_loop())
        asgi, terms = self.asgi, self.terms
        self.hop = terms.hop
        resolved = terms.policy.limits(asgi["path"], asgi.get("method", ""))
        limits = resolved.limits
        now = driver.now()
        arrival = asgi.get("holdfast.arrival", now)
        if arrival > now:
            arrival = now
        self.arrival = arrival
        budget = limits.request
        if stream or resolved.stream:
            self.streams = True
            budget, self.idle = NEVER, limits.idle
        self.left, malformed, self.ours = terms.codec.glance(asgi["headers"])
        # Where nobody has named it yet, it is given a name here, as its response will show one, and
        # in time for every thread. All else about who it is waits until somebody asks.
        self.trace = "" if self.ours else fresh_trace_id()
        if self.left < budget:
            budget = self.left
        if malformed:
            self._malformed = malformed
            terms.counts["malformed_header"] += malformed
        if terms.observing:
            budget = self.idle = NEVER
        self.at = arrival + budget
        # Of a caller that gave little, half at most is kept for clean-up.
        self.grace = min(limits.grace, max(0.0, self.at - now) / 2) if limits.grace else 0.0
        self.reserve = limits.reserve
        if limits.refuse_below and self.at - now < limits.refuse_below:
            self.driver = driver
            self.refusal = "expired" if self.at <= now else "too_little"
            what = f"not begun: {format_duration(max(0.0, self.at - now))} left"
            return Cause(CauseKind.DEADLINE, self.name, self.hop, now, budget, now - arrival, what)
        try:
            if (outer := AMBIENT.get()) is None or _stale(outer):
                self.enter_first(task, driver, now)
            else:
                self.enter(task)
                driver.young.append(self)
                driver.await_settling(self, now)
        except ScopeEnded as ended:
            late = ended.cause.kind is CauseKind.DEADLINE
            self.refusal = "expired" if late else "cancelled"
            return ended.cause
        if self.idle != NEVER:
            self._watch_idle(now)
        return None

    def caller_is_late(self, cause: Cause) -> bool:
        """Whether what the caller gave is spent, so that another try is in vain for it.

        Not so where a cap of the policy or a scope of the handler was the limit. That it was the
        caller's is known before it is over: a hop below has less, and says first that it is spent.
        """
        end, now = self.arrival + self.left, self.driver.now()
        if self.refusal == "too_little":
            asgi = self.asgi
            resolved = self.terms.policy.limits(asgi["path"], asgi.get("method", ""))
            now += resolved.limits.refuse_below
        return is_late(cause, end, now, self.kept)

    def grow_up(self) -> None:
        """Still open after a while: from now on see to it that its client is there.

        Most requests are answered before, and for them the watch costs nothing.
        """
        self.settle()
        if not self.complete:
            self.reader().read_ahead()

    # -- reading ---------------------------------------------------------------------------------

    def receive(self) -> Awaitable[Message]:
        """The `receive` of the handler."""
        self.touched = self.driver.now()
        return self.reader().receive()

    def reader(self) -> Inbox:
        """The one reader of what the client sends."""
        if self.inbox is None:
            self.inbox = Inbox(self._receive, self._client_gone, self.farewell)
        return self.inbox

    def _client_gone(self, told: bool) -> None:
        if self.complete or self.outcome is not None:
            return
        self.complete = True  # whatever is sent now goes nowhere
        if not self._sent_away():
            self.terms.counts["disconnected"] += 1
        if not self.terms.observing:
            self.gone = True
            self._end_for_gone(told)

    def _sent_away(self) -> bool:
        """Whether it was the server that ended the connection, since it stops."""
        return False

    def _end_for_gone(self, told: bool) -> None:
        """The client has gone; `told` when the handler has read that itself."""
        raise NotImplementedError

    # -- idling ----------------------------------------------------------------------------------

    def become_stream(self) -> None:
        """From now on the idle limit holds, and of total limits only the caller's.

        Not where the route says that it is no stream.
        """
        asgi = self.asgi
        resolved = self.terms.policy.limits(asgi["path"], asgi.get("method", ""))
        if resolved.stream is False or self.streams:
            return
        self.streams = True
        if self.terms.observing:
            return
        self.idle = resolved.limits.idle
        self.move_deadline(self.arrival + self.left)
        self._watch_idle(self.driver.now())

    def _watch_idle(self, now: Instant) -> None:
        self.touched = now
        if self.idle != NEVER:
            self._idling = IdleWatch(self, self.idle, self._touched)

    def _touched(self) -> Instant:
        return NEVER if self.complete else self.touched

    # -- leaving ---------------------------------------------------------------------------------

    def conclude(self, error: BaseException | None) -> Cause | None:
        """Close the scope; the cause when that is what ended it.

        Raises:
            BaseException: `error`, when the handler failed by itself.
        """
        if self.left_quietly(error):
            return self.failure
        if self.inbox is not None:
            self.inbox.stop()
        if self._idling is not None:
            self._idling.stop()
        try:
            self.leave(error)
        except ScopeEnded as ended:
            return self._told_apart(ended.cause)
        if error is None or (self.gone and _tells_of_disconnect(error)):
            return self.failure
        cause = ended_by(error)
        if cause is not None:
            return self._told_apart(cause)
        if self.failure is None or self.gone:
            raise error
        return self.failure

    def _told_apart(self, cause: Cause) -> Cause:
        """The client left first: whatever else ended the handler after that, nobody waited."""
        return self.failure if self.gone and self.failure is not None else cause


def _stale(outer: HostedNode | None) -> bool:
    """Whether what seems to be around is another request, of which this one is no part.

    uvicorn starts a pipelined request in the context of the one before it, and a transport that was
    paused goes on reading in the context of whoever let it.
    """
    while outer is not None:
        if outer.outcome is not None or (isinstance(outer, Exchange) and outer.complete):
            AMBIENT.set(None)
            return True
        outer = outer.outer
    return False


def _tells_of_disconnect(error: BaseException) -> bool:
    """Whether a handler failed only since its client has gone, which is no error of the server."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return all(_tells_of_disconnect(inner) for inner in group.exceptions)
    return any(kind.__name__ in _DISCONNECTS for kind in type(error).__mro__)
