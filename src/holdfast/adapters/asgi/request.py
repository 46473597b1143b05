"""One HTTP request: what may still be sent, and how it ends.

Rule 1. One start, one end. After the request was answered for the handler, what the handler still
        sends goes nowhere.
Rule 2. Nothing was sent yet: a spent limit is a 504, a shutdown or an overload a 503, each as a
        problem document. Something was sent: the connection is cut, so that nobody takes a part for
        the whole. The client has gone: nothing is sent.
Rule 3. An answer does not wait for a handler that cannot be stopped (a thread): it is sent soon
        after the limit, and the handler is counted until it ends.
Rule 4. When the response is complete the client has what it wanted: what the handler does then is
        its own affair and is not cancelled.
"""

from __future__ import annotations

import sys
from typing import Final

from holdfast.adapters.asgi.answers import problem_messages, server_timing
from holdfast.adapters.asgi.exchange import Exchange, ended_by
from holdfast.adapters.asgi.terms import Terms
from holdfast.adapters.asgi.types import Headers, Message, Receive, Send, ServerScope
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import NEVER, Duration
from holdfast.runtime.tasks import aside

__all__ = ["Request"]

_ANSWER_AFTER: Final[Duration] = 0.01
"""Seconds that a cancelled handler has to end by itself before its request is answered for it."""

_TOLD_GRACE: Final[Duration] = 1.0
"""Seconds for a handler that has read itself that its client has gone."""

_REQUEST_ID: Final = b"x-request-id"
_EVENT_STREAM: Final = b"text/event-stream"


class Request(Exchange):
    """The scope of one request, and the `receive` and `send` that its handler gets."""

    __slots__ = ("muted", "started")

    farewell = "http.disconnect"
    overdue: bool = False
    failure: Cause | None = None

    def __init__(self, asgi: ServerScope, receive: Receive, send: Send, terms: Terms) -> None:
        super().__init__(asgi, receive, send, terms)
        self.started = self.muted = False

    async def send(self, message: Message) -> None:
        """The `send` of the handler."""
        if self.muted:
            return
        kind = message["type"]
        if kind == "http.response.body":
            if not message.get("more_body", False):
                self._completed()
            await self._send(message)
            self.touched = self.driver.now()
        elif kind == "http.response.start":
            if self.started or not self._ends_instead(message["status"]):
                self.started = True
                await self._send({**message, "headers": self._headers(message.get("headers", ()))})
        else:
            await self._send(message)

    def _ends_instead(self, status: int) -> bool:
        """Whether the request has ended already, so that this response must not start."""
        if self.limit <= self.driver.now():
            # Too late, and nobody gave the loop a chance to say so. Leaving the scope will.
            self.muted = True
        elif status >= 500:
            # A framework turns an error of ours into its own page, inside its except block.
            self.failure = ended_by(sys.exc_info()[1])
            self.muted = self.failure is not None
        return self.muted

    def _headers(self, headers: Headers) -> Headers:
        found = list(headers)
        content_type = b""
        named = False
        for name, value in found:
            name = name.lower()
            if name == b"content-type":
                content_type = value
            elif name == _REQUEST_ID:
                named = True
        if not named:
            found.append((_REQUEST_ID, self.carried.identity.echo_id.encode("latin-1")))
        found.append((b"server-timing", self._timing()))
        if content_type.startswith(_EVENT_STREAM):
            self.become_stream()
        return found

    def _timing(self) -> bytes:
        return server_timing(self.hop, self.driver.now() - self.arrival, self._ledger)

    def _completed(self) -> None:
        self.complete = True
        if self.inbox is not None:
            self.inbox.stop()
        if self.limit != NEVER and self.cause is None:
            self.lift()

    def _end_for_gone(self, told: bool) -> None:
        self.muted = True
        if told:
            self.driver.alarm(self.driver.now() + _TOLD_GRACE, self._cancel_for_gone)
        else:
            self._cancel_for_gone()

    def _cancel_for_gone(self) -> None:
        if self.outcome is None:
            self.cancel(kind=CauseKind.DISCONNECT)

    # -- the answer ------------------------------------------------------------------------------

    def cancel_node(self, cause: Cause) -> bool:
        """See `Scope`; an answer is due soon, whatever the handler does."""
        won = super().cancel_node(cause)
        if won and cause.kind is not CauseKind.DISCONNECT and not self.started:
            self.driver.alarm(self.driver.now() + _ANSWER_AFTER, self._answer_for_handler)
        return won

    def _answer_for_handler(self) -> None:
        if self.outcome is None and not self.muted and not self.started and self.cause is not None:
            self.overdue = True
            self.terms.counts["overdue"] += 1
            aside(self.answer(self.cause), name="holdfast answer")

    async def answer(self, cause: Cause) -> None:
        """Answer for the handler, unless an answer has begun or nobody is there to read it."""
        if self.started or cause.kind is CauseKind.DISCONNECT:
            return
        self.started = self.muted = True
        if self._ledger is not None and self._ledger.below and not cause.below:
            cause = cause.with_below(*self._ledger.below)
        for message in problem_messages(cause, self.carried.identity, self._timing()):
            await self._send(message)
        self._completed()
