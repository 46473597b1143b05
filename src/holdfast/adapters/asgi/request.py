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

import asyncio
import sys
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

from holdfast.adapters.asgi.answers import problem_messages
from holdfast.adapters.asgi.exchange import Exchange
from holdfast.adapters.asgi.types import Headers, Message, Receive, Send, ServerScope
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import Duration
from holdfast.domain.wire.ending import ended_by
from holdfast.domain.wire.timing import hop_timing
from holdfast.runtime.scope import AMBIENT
from holdfast.runtime.tasks import aside
from holdfast.runtime.terms import Terms

__all__ = ["Request"]

_ANSWER_AFTER: Final[Duration] = 0.01
"""Seconds that a cancelled handler has to end by itself before its request is answered for it."""

_TOLD_GRACE: Final[Duration] = 1.0
"""Seconds for a handler that has read itself that its client has gone."""

_AT_ONCE: Final = 32_768
"""Bytes that a server takes without waiting for the client: half of what transports buffer."""

_REQUEST_ID: Final = b"x-request-id"
_EVENT_STREAM: Final = b"text/event-stream"
_WHOLE: Final = ("http.response.pathsend", "http.response.zerocopysend")
"""Extensions of servers: one message that is the whole body."""


async def _nothing() -> None:
    """Where a message goes that nobody will read. A turn of the loop, so that a handler that does
    nothing but send can be told that it is over."""
    await asyncio.sleep(0)


class Request(Exchange):
    """The scope of one request, and the `receive` and `send` that its handler gets."""

    __slots__ = ("muted", "parted", "started")

    farewell = "http.disconnect"
    _answering: asyncio.Task[None] | None = None
    _finishing: bool = False
    """Whether the last message is with the server, which may still wait for the client."""

    def __init__(self, asgi: ServerScope, receive: Receive, send: Send, terms: Terms) -> None:
        super().__init__(asgi, receive, send, terms)
        self.started = self.muted = self.parted = False

    def send(self, message: Message) -> Awaitable[None]:
        """The `send` of the handler: changes the message and hands on to the server."""
        if self.muted:
            return _nothing()
        self.touched = self.driver.now()
        kind = message["type"]
        if kind == "http.response.start":
            if not self.started:
                if (self.limit <= self.touched or message["status"] >= 500) and (
                    self._ends_instead()
                ):
                    return _nothing()
                self.started = True
                headers = self._headers(message.get("headers", ()))
                return self._send({**message, "headers": headers})
        elif kind == "http.response.body":
            if message.get("more_body", False):
                self.parted = True
            elif self.parted or len(message.get("body", b"")) > _AT_ONCE:
                return self._send_last(message)
            else:
                self._completed()
        elif kind in _WHOLE:
            return self._send_last(message)
        return self._send(message)

    async def _send_last(self, message: Message) -> None:
        # A server may wait here until the client has read what was sent; until then the limit
        # holds. A small body of one part is handed over without waiting.
        self._finishing = True
        try:
            await self._send(message)
        finally:
            self._finishing = False
        self._completed()

    def _ends_instead(self) -> bool:
        """Whether the request has ended already, so that this response must not start."""
        if self.limit <= self.touched:
            # Too late, and nobody gave the loop a chance to say so.
            what = "noticed when the response began"
            self.failure = self.cause_of(CauseKind.DEADLINE, self.touched, what)
        else:
            # A framework turns an error of ours into its own page, inside its except block.
            self.failure = ended_by(sys.exc_info()[1])
        self.muted = self.failure is not None
        return self.muted

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        found = list(headers)
        named = False
        for name, value in found:
            if name == b"content-type":
                if value.startswith(_EVENT_STREAM):
                    self.become_stream()
            elif name == _REQUEST_ID:
                named = True
        if not named:
            found.append((_REQUEST_ID, self.echo_id()))
        terms = self.terms
        if terms.timing:
            spent = self.touched - self.arrival
            timing = hop_timing(terms.hop, terms.timing, spent, self._below())
            found.append((b"server-timing", timing))
        return found

    def echo_id(self) -> bytes:
        """What the response shows as `X-Request-ID`."""
        if self.trace:
            return self.trace.encode("ascii")
        if self._given is None:
            found = self.terms.codec.echo(self.ours)
            if found is not None:
                return found.strip(b" \t")
        return self.given.identity.echo_id.encode("latin-1")

    def _below(self) -> Sequence[tuple[str, Duration]]:
        return () if self._ledger is None else self._ledger.spent

    def _timing(self) -> bytes:
        terms = self.terms
        spent = self.driver.now() - self.arrival
        return hop_timing(terms.hop, terms.timing, spent, self._below())

    def _completed(self) -> None:
        self.complete = True
        if self.inbox is not None:
            self.inbox.stop()
        if self.tightens and self.cause is None:
            if AMBIENT.get() is not self:
                self.driver.settle()  # the scope that is open inside must be found, to follow
            self.lift()

    def _client_gone(self, told: bool) -> None:
        # hypercorn says so when the last message has gone out, before its `send` returns. Where the
        # client has really gone, `send` returns as well.
        if not self._finishing:
            super()._client_gone(told)

    def _end_for_gone(self, told: bool) -> None:
        self.muted = True
        if self.failure is None:
            what = "the handler has read it" if told else ""
            self.failure = self.cause_of(CauseKind.DISCONNECT, self.driver.now(), what)
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
        if won and self.started:
            # Cut, even where the handler ends the body in its clean-up: it is not the whole.
            self.muted = not self.complete
        elif won and cause.kind is not CauseKind.DISCONNECT:
            self.driver.alarm(self.driver.now() + _ANSWER_AFTER, self._answer_for_handler)
        return won

    def _answer_for_handler(self) -> None:
        if self.outcome is None and not self.muted and not self.started and self.cause is not None:
            self.terms.counts["overdue"] += 1
            self._answering = aside(self._answer(self.cause), name="holdfast answer")

    async def answer(self, cause: Cause) -> None:
        """Answer for the handler, unless an answer has begun or nobody is there to read it."""
        if self._answering is not None:
            # Not `await`: a server that sees its application return takes the answer for complete.
            await asyncio.wait([self._answering])
        await self._answer(cause)

    async def _answer(self, cause: Cause) -> None:
        if self.started or self.gone or cause.kind is CauseKind.DISCONNECT:
            return
        self.started = self.muted = True
        if cause.kind is CauseKind.SHUTDOWN:
            self.terms.counts["turned_away"] += 1
        if self._ledger is not None and self._ledger.below and not cause.below:
            cause = cause.with_below(*self._ledger.below)
        messages = problem_messages(
            cause,
            self.given.identity,
            self._timing(),
            spent=self.caller_is_late(cause),
            details=self.terms.details,
            retry=self.terms.retry,
        )
        for message in messages:
            await self._send(message)
        self._completed()
