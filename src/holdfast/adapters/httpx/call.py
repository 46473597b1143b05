"""One call of httpx: what it may spend, what it sends, how far it is, how it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from holdfast.adapters.httpx.library import LIBRARIES, Library, library_of
from holdfast.adapters.httpx.progress import DIRECT, Progress, Way
from holdfast.domain.cause import CauseKind
from holdfast.domain.context import ANONYMOUS
from holdfast.domain.errors import DeadlineExceeded, ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.phases import DIALLING, Ended, Phase, Trail
from holdfast.domain.wire.baggage import format_baggage, parse_baggage
from holdfast.domain.wire.budget import Decode, tightest
from holdfast.runtime.ambient import hop_reserve
from holdfast.runtime.outbound import PEEK, Options, Outbound
from holdfast.runtime.outbound import Call as AnyCall
from holdfast.runtime.scope import Scope, ambient
from holdfast.runtime.timers import Alarm

__all__ = ["PEEK", "Call", "Compiled", "Options", "clamped", "content_of", "observe"]

_TIMEOUTS: Final = ("connect", "read", "write", "pool")
_EARLIER: Final = (Phase.POOL, *DIALLING, Phase.REQUEST)
_EARLY: Final[Duration] = 0.005
"""Seconds that a socket's time-out may be ahead of the deadline it was set to."""

_HOPS: Final = "holdfast.hops"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def _nothing() -> None:
    pass


class Compiled:
    """Options, made ready for use by every call.

    Args:
        options: see there.
        way: how the transport gets to the servers.
        first: the phase in which a call begins.
        forget: is called when a dial did not get to its end.
    """

    __slots__ = ("_outbound", "bounded", "first", "forget", "way")

    def __init__(
        self,
        options: Options,
        way: Way = DIRECT,
        first: Phase = Phase.POOL,
        forget: Callable[[], None] = _nothing,
    ) -> None:
        self._outbound = {
            library: Outbound(options, library.errors) for library in LIBRARIES.values()
        }
        self.bounded = tuple(options.shares.bounded)
        self.way = way
        self.first = first
        self.forget = forget

    def outbound(self, library: Library) -> Outbound:
        """The options for the calls of one of the libraries."""
        return self._outbound[library]


class Call(AnyCall):
    """One call and its bounds, which are captured when it begins and hold wherever it is read.

    Attributes:
        progress: how far it is.
        scope: of its own, while it has one.
        received: bytes of the body so far; -1 until the head of the response is there.
        overdue: whether a phase has used up its share, for which `scope` was cancelled.
    """

    __slots__ = (
        "_alarm",
        "_limit",
        "_record",
        "compiled",
        "library",
        "overdue",
        "progress",
        "received",
        "request",
        "reserve",
        "scope",
    )

    def __init__(self, compiled: Compiled, request: Any) -> None:
        self.library: Library = library_of(request)
        self.scope: Scope | None = None
        url = request.url
        path = url.raw_path.partition(b"?")[0].decode("ascii", "replace")
        outbound = compiled.outbound(self.library)
        super().__init__(outbound, request.method, url.host, path, "")
        self.progress = Progress(self._record, request.method, url, compiled.way, self.now)
        self.compiled = compiled
        self.request = request
        self.received = -1
        self.overdue = False
        self.reserve = max(outbound.options.reserve, hop_reserve())
        self._alarm: Alarm | None = None
        hops = request.extensions.get(_HOPS)
        if hops is not None and hops[0] != id(request):
            self._record.redirects = hops[1]

    @property
    def limit(self) -> Instant:
        """Monotonic instant at which it is over; infinite without a deadline.

        While a scope of its own is open, that one's: a server lifts the deadline of what goes on
        after the response.
        """
        return self._limit if self.scope is None else self.scope.limit

    @limit.setter
    def limit(self, at: Instant) -> None:
        self._limit: Instant = at

    @property
    def trail(self) -> Trail:
        """Its record, up to date."""
        return self.progress.trail

    @trail.setter
    def trail(self, trail: Trail) -> None:
        self._record: Trail = trail

    def outlive(self) -> None:
        """Its scope closes; what was its limit last still holds."""
        self._limit, self.scope = self.limit, None

    # -- how far it is ---------------------------------------------------------------------------

    def enter(self, phase: Phase) -> None:
        """`phase` begins. Where it has a share, its scope is cancelled when that is spent."""
        if self._alarm is not None:
            self._drop_alarm()
        if self.overdue:
            return  # on its last few turns, before the cancellation reaches it
        if phase not in self.compiled.bounded:
            self.progress.note(phase)
            return
        until = self.trail.begin(phase, self.now())
        if until < self.limit and self.scope is not None:
            self._alarm = self.scope.driver.alarm(until, self._share_spent)

    def _share_spent(self) -> None:
        self._alarm = None
        phase = self.trail.phase
        if self.scope is not None and phase is not None:
            self.overdue = True
            self.trail.end(self.now(), Ended.TIMEOUT)
            detail = f"the share of {phase.value} is spent"
            self.scope.cancel(detail, kind=CauseKind.DEADLINE)

    def _drop_alarm(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None and self.scope is not None:
            self.scope.driver.drop(alarm)

    def answered(self, response: Any) -> None:
        """The head of the response is there."""
        self.received = 0
        self.progress.head = True
        self.enter(Phase.BODY)
        if response.status_code in _REDIRECTS and "location" in response.headers:
            # The client copies this to the request that follows.
            hops = (id(self.request), self._record.redirects + 1)
            self.request.extensions[_HOPS] = hops

    def over_and_done(self, error: BaseException | None = None) -> None:
        """It has ended; whoever watches calls is told."""
        if self._alarm is not None:
            self._drop_alarm()
        if self.progress.dialled is not None:
            # A pool for a SOCKS proxy forgets a connection whose dial does not get to its end.
            self.progress.dialled()
            self.progress.dialled = None
            self.compiled.forget()
        if self.outbound.options.observer is not None:
            self.done(error)

    def cut(self, *, blamed: bool = True) -> None:
        """It is cancelled where it is; the scope that was the reason learns of it.

        Args:
            blamed: whether it was waited for.
        """
        here = ambient()
        cause = None if here is None else here.reached()
        trail, now = self.trail, self.now()
        late = cause.kind is CauseKind.DEADLINE if cause is not None else trail.spent(now)
        trail.end(now, Ended.TIMEOUT if late else Ended.CANCELLED)
        if blamed and here is not None:
            here.blame(trail)

    # -- errors ----------------------------------------------------------------------------------

    def over(self, detail: str = "") -> DeadlineExceeded:
        """The error for a limit that was spent at the point where the call is now."""
        # Before the response is what it waits for, the phase says more.
        early = self.received < 0 and self.trail.phase in _EARLIER
        return super().over(detail or ("" if early else self.doing()))

    def doing(self) -> str:
        """What the call was waiting for, in words."""
        if self.received < 0:
            return "while waiting for the response"
        return f"while reading the body, {self.received} bytes received"

    def explained(self, exc: Exception, *, late: bool | None = None) -> Exception:
        """`exc` with a note, or our own error when it is a time-out since the limit is spent."""
        if self.overdue:
            return self.late_phase()
        if isinstance(exc, ScopeEnded):
            # Of the dial, where it was refused to begin a phase; or it is none of our business.
            mine = isinstance(exc, DeadlineExceeded) and exc.trail is self._record
            return self.over() if mine else exc
        if late is None:
            late = isinstance(exc, self.library.api.TimeoutException)
        if self.limit != NEVER:
            left = self.left
            if late and left <= _EARLY:
                return self.over()
            budget = format_duration(self.limit - self.begun)
            exc.add_note(f"in call '{self.name}' (budget {budget}, {format_duration(left)} left)")
        if isinstance(exc, self.library.api.TransportError):
            vars(exc)["trail"] = self.trail
        return super().explained(exc, late=late)

    def late_phase(self) -> Exception:
        """The error for a phase that has used up its share."""
        trail = self.trail
        trail.end(self.now(), Ended.TIMEOUT)
        return self.outbound.errors.phase(trail)

    # -- what is sent ----------------------------------------------------------------------------

    def outgoing(self, clamp: bool, watched: bool = False) -> Any:
        """The request as it is sent. The caller's own stays as it is: it may be sent once more.

        Args:
            clamp: whether the time-outs of the library must not be longer than what is left; not
                where a scope ends the call anyhow.
            watched: whether the pool will be asked to tell how far it is.
        """
        request, bounded = self.request, self.limit != NEVER
        carried = ANONYMOUS if self.here is None else self.here.carried
        outbound = self.outbound
        ours = outbound.codec.headers(
            self.left if bounded else None,
            carried.identity,
            "",
            carried.stage,
            carried.baggage,
            self.reserve,
        )
        if not ours and not bounded and not watched:
            return request
        extensions: dict[str, Any] = request.extensions
        if bounded or watched:
            extensions = {**extensions}
            if bounded and clamp:
                extensions["timeout"] = clamped(extensions.get("timeout"), self.left)
        return self._twin(_joined(request.headers, ours, outbound.budgets), extensions)

    def _twin(self, headers: Any, extensions: dict[str, Any]) -> Any:
        # Not `Request(...)`: that would parse the URL and build the headers and the body anew.
        request = self.request
        kind: Any = request.__class__
        twin: Any = object.__new__(kind)
        if kind is not self.library.api.Request:
            twin.__dict__ = {**request.__dict__, "headers": headers, "extensions": extensions}
            return twin
        # One by one: whoever looks at `__dict__` makes an object slow to read for all others.
        twin.method = request.method
        twin.url = request.url
        twin.headers = headers
        twin.extensions = extensions
        twin.stream = request.stream
        content = getattr(request, "_content", None)
        if content is not None:
            twin._content = content
        return twin


def clamped(timeouts: Mapping[str, float | None] | None, left: Duration) -> dict[str, float]:
    """The library's own time-outs, none of them longer than what is left."""
    if not timeouts:
        return dict.fromkeys(_TIMEOUTS, left)
    bounded: dict[str, float] = {}
    for phase in _TIMEOUTS:
        own = timeouts.get(phase)
        bounded[phase] = left if own is None or own > left else own
    return bounded


def _joined(theirs: Any, ours: list[tuple[str, str]], budgets: Mapping[bytes, Decode]) -> Any:
    """The headers of a request with ours; one that is there already is never doubled."""
    rows: list[tuple[bytes, bytes, bytes]] | None = getattr(theirs, "_list", None)
    if rows is not None:
        # `headers[name] = value` would look through all of them for each of ours, and a copy would
        # go through all of them too.
        mine = {name.encode(): value.encode() for name, value in ours}
        if mine.keys().isdisjoint([row[1] for row in rows]):
            kind: Any = theirs.__class__
            twin: Any = object.__new__(kind)
            twin._list = rows + [(name, name, value) for name, value in mine.items()]
            twin._encoding = theirs._encoding
            return twin
    headers = theirs.copy()
    present = {name.lower() for name, _ in theirs.raw}
    own_trace = b"traceparent" in present
    for name, value in ours:
        key = name.encode("ascii")
        if key not in present:
            if name != "tracestate" or not own_trace:
                headers[name] = value
        elif key in budgets:
            decode = budgets[key]
            own = decode(headers[name].encode("latin-1", "replace"))
            if own is None or tightest(own, decode(value.encode())) != own:
                headers[name] = value
        elif name == "baggage":
            given, _ = parse_baggage(headers[name].encode("latin-1", "replace"))
            carried, _ = parse_baggage(value.encode())
            headers[name] = format_baggage({**carried, **given})
    return headers


def content_of(response: Any) -> bool:
    """Whether the body should be looked into: it may say who was late."""
    return Call.worth_a_look(response.status_code, response.headers)


def observe(call: Call, response: Any, body: bytes) -> None:
    """Note what the hop below says about itself; see `outbound.Call.observe`."""
    call.observe(response.status_code, response.headers, body)
