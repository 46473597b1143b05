"""One request: what its handler may still send, and how it ends.

Rule 1. The response begins when its first byte is there, not when `start_response` is called: up to
        then it can become another one. The server hears of it then.
Rule 2. It has not begun: a spent limit is a 504, a shutdown or an overload a 503, each as a problem
        document. It has begun: the connection is cut, by an error that leaves to the server, so
        that nobody takes a part for the whole.
Rule 3. A body that is complete by its `Content-Length` is not cut.
Rule 4. What an application does in `close()` is its own affair: the limit does not hold there.

Rule 5. The scope is the ambient one while code of the application runs, and not in between: the
        thread is the server's, and the next request may be of another carrier. All other context
        variables are left as the application has them; Flask looks for its own after the call.

Nothing in a thread can be cancelled. So a limit is what the clients inside are bounded by, and is
looked at when the application returns and between the parts of its body.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import replace
from typing import Final

from holdfast.adapters.wsgi.environ import WireKeys, arrival_of, path_of
from holdfast.adapters.wsgi.types import Environ, ErrorInfo, Headers, StartResponse, Write
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import DeadlineExceeded, ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.tree import Outcome
from holdfast.domain.wire.ending import ended_by
from holdfast.runtime.clock import monotonic
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.scope import AMBIENT, ambient
from holdfast.runtime.served import Served
from holdfast.runtime.terms import Terms

__all__ = ["HERE", "Exchange"]

_OVERDUE: Final[Duration] = 0.01
"""Seconds after its limit within which a handler whose clients are bounded ends."""

_DIGITS: Final = 18
"""Of a length at most; a longer number is none."""

_PHRASES: Final = {504: "504 Gateway Timeout", 503: "503 Service Unavailable"}


class Exchange(Served):
    """See the module.

    Args:
        environ: of the request.
        server: the `start_response` of the server.
        terms: under which it is served.
        keys: headers that are read.
        header: key of the header with the time at which a proxy took it; empty for none.

    Attributes:
        begun: whether the server was told of a response.
        complete: whether the client gets nothing more.
        noted: why a framework has made a page with a 500, where that is an error of ours.
    """

    # Not every request comes to where these are set.
    _outside: HostedNode | None
    _headers: Headers
    _server_write: Write
    _end: Instant
    _idle: Duration

    def __init__(
        self,
        environ: Environ,
        server: StartResponse,
        terms: Terms,
        keys: WireKeys,
        header: str,
    ) -> None:
        outer = ambient()
        around = AMBIENT.get()  # it may be over, and still tells the clock
        self.now = monotonic if around is None else around.driver.now
        arrival, malformed = arrival_of(environ, self.now(), header)
        if malformed:
            terms.counts["malformed_header"] += 1
        self.method: str = environ["REQUEST_METHOD"]
        super().__init__(terms, keys.read(environ), self.method, path_of(environ), arrival)
        self._inner = False
        if outer is not None and outer.carried.identity:
            # A server carrier around this one has read who it is, and shows it.
            self._inner = True
            self.carried = self.scope.given = outer.carried
        self._server = server
        self._inside: HostedNode | None = self.scope
        self._status = ""
        self.noted: Cause | None = None
        self.begun = self.complete = self._entered = False
        self._due: float = NEVER

    # -- opening and closing ---------------------------------------------------------------------

    def open(self) -> Cause | None:
        """Enter the scope; the cause when the application must not be called."""
        cause = self.refusal(self.now())
        if cause is not None:
            return cause
        self._outside = AMBIENT.get()
        try:
            self.scope.enter_plain()
        except ScopeEnded as ended:
            late = ended.cause.kind is CauseKind.DEADLINE
            self.terms.counts["refused.expired" if late else "refused.cancelled"] += 1
            return ended.cause
        self._entered = True
        if self.streams and not self.terms.observing:
            self._become_stream()
        return None

    def step_in(self) -> None:
        """Code of the application is about to run: its innermost scope is the ambient one."""
        self._outside = AMBIENT.get()
        AMBIENT.set(self._inside)

    def step_out(self) -> None:
        """It has run. What it left open, as a body may between two parts, is open the next time."""
        self._inside = AMBIENT.get()
        AMBIENT.set(self._outside)

    def close(self, outcome: Outcome) -> None:
        """Leave the scope, once."""
        if self._entered and self.scope.outcome is None:
            self.scope.close(outcome)
            if self.terms.observing:
                self.observe(self.now())

    def lift(self) -> None:
        """From here on it is clean-up."""
        self.scope.lift()

    @property
    def late(self) -> bool:
        """Whether the limit is spent and the client has not got everything."""
        return not self.complete and self.scope.limit <= self.now()

    # -- what the application calls --------------------------------------------------------------

    def start_response(
        self, status: str, headers: Headers, exc_info: ErrorInfo | None = None, /
    ) -> Write:
        """The `start_response` of the application: notes, and tells the server later.

        Raises:
            AssertionError: it was called before, and no error is the reason.
            BaseException: that error, where the response has begun.
        """
        if self.begun and exc_info is not None:
            return self._server(status, headers, exc_info)
        if self._status and exc_info is None:
            raise AssertionError("start_response() was called before; give exc_info to call again")
        self._status, self._headers = status, headers
        if status.startswith("5"):
            # A framework turns an error of ours into its own page, inside its except block.
            error = sys.exc_info()[1] if exc_info is None else exc_info[1]
            self.noted = ended_by(error) or self.noted
        return self._write

    def _write(self, data: bytes) -> None:
        if self.late:
            raise self._over("noticed when it wrote")
        if not self.begun:
            if not data:
                return
            cause = self.instead()
            if cause is not None:
                raise DeadlineExceeded(cause)
            self.begin()
        self._server_write(data)
        self.count(data)
        if self.streams:
            self.touch()

    # -- what it sends ---------------------------------------------------------------------------

    def instead(self) -> Cause | None:
        """Why this response must not begin, if so."""
        if self.noted is not None and self._status.startswith("5"):
            return self.noted
        now = self.now()
        if self.scope.limit <= now:
            return self.scope.cause_of(CauseKind.DEADLINE, now, "noticed when the response began")
        return None

    def begin(self) -> None:
        """Tell the server of the response.

        Raises:
            AssertionError: the application has started none.
        """
        if not self._status:
            raise AssertionError("the application did not call start_response()")
        headers = self._shown()
        self.begun = True
        self._server_write = self._server(self._status, headers)

    def _shown(self) -> Headers:
        found = list(self._headers)
        named = False
        for name, value in found:
            lower = name.lower()
            if lower == "content-type":
                if value.startswith("text/event-stream") and self._may_stream():
                    self._become_stream()
            elif lower == "content-length":
                sane = value.isdecimal() and len(value) <= _DIGITS
                self._due = int(value) if sane else NEVER
            elif lower == "x-request-id":
                named = True
        if not self._inner:
            if not named:
                found.append(("X-Request-ID", self.carried.identity.echo_id))
            if self.terms.timing:
                found.append(("Server-Timing", self.timing(self.now()).decode("latin-1")))
        return found

    def _may_stream(self) -> bool:
        return not (self.streams or self.terms.observing or self.resolved.stream is False)

    def _become_stream(self) -> None:
        scope = self.scope
        assert scope.parent is not None
        self.streams = True
        self._idle = self.resolved.limits.idle
        self._end = min(self.arrival + self.left, scope.parent.limit) - scope.kept
        self.touch()

    def touch(self) -> None:
        """Another part is asked for: of a stream, the idle limit begins anew."""
        if not self.terms.observing:
            self.scope.limit = min(self._end, self.now() + self._idle)

    def count(self, part: bytes) -> None:
        """A part goes to the server."""
        self._due -= len(part)
        if self._due == 0:  # below that the length was a wrong one, and says nothing
            self.complete = True

    # -- its end ---------------------------------------------------------------------------------

    def _over(self, detail: str) -> DeadlineExceeded:
        return DeadlineExceeded(self.scope.cause_of(CauseKind.DEADLINE, self.now(), detail))

    def cut(self) -> DeadlineExceeded:
        """The error that has the server end the connection."""
        if self.streams and not self.terms.observing and self.scope.limit < self._end:
            return self._over(f"nothing was sent for {format_duration(self._idle)}")
        return self._over("noticed between two parts of the body")

    def placed(self, cause: Cause) -> Cause:
        """The cause, with this hop and the scope of the request before its own.

        The scopes of plain functions are trees of their own, and know neither.
        """
        name = self.scope.name
        where = cause.scope if cause.scope.startswith(name) else f"{name}/{cause.scope}"
        return replace(cause, hop=cause.hop or self.terms.hop, scope=where)

    def answer_for(self, cause: Cause) -> Iterable[bytes]:
        """Answer in place of the application; the body."""
        now = self.now()
        if cause.kind is CauseKind.SHUTDOWN:
            self.terms.counts["turned_away"] += 1
        elif self._entered and self.scope.limit + _OVERDUE < now:
            self.terms.counts["overdue"] += 1
        status, headers, body = self.answer(cause, now)
        shown = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        self.begun = True
        self._server(_PHRASES.get(status, f"{status} Client Closed Request"), shown)
        self.complete = True
        return () if self.method == "HEAD" else (body,)


HERE: Final[ContextVar[Exchange | None]] = ContextVar("holdfast.wsgi", default=None)
"""The exchange whose application is being called."""
