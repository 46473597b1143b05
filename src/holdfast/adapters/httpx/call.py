"""One call: what it may spend, what it sends, what it learns from the reply, how it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from holdfast.adapters.httpx.library import Library, library_of
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS
from holdfast.domain.errors import Cancelled, DeadlineExceeded, ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.wire.baggage import format_baggage, parse_baggage
from holdfast.domain.wire.budget import Decode, decoder, tightest
from holdfast.domain.wire.inbound import OutboundCodec
from holdfast.domain.wire.problem import (
    CAUSE_HEADER,
    PROBLEM_TYPE,
    parse_cause_header,
    parse_problem,
)
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.domain.wire.timing import TIMING_HEADER, parse_timing
from holdfast.runtime.ambient import hop_reserve, ledger
from holdfast.runtime.clock import monotonic
from holdfast.runtime.scope import Scope, ambient

__all__ = ["PEEK", "Call", "Compiled", "Options", "clamped", "content_of", "observe", "sent_late"]

PEEK: Final = 16_384
"""Bytes of a problem document that are looked at, before it is handed on as it came."""

_PHASES: Final = ("connect", "read", "write", "pool")
_EARLY: Final[Duration] = 0.005
"""Seconds that a socket's time-out may be ahead of the deadline it was set to."""

_LONGEST_NAME: Final = 96


@dataclass(frozen=True, slots=True)
class Options:
    """What a transport was told; see `AsyncHoldfastTransport`."""

    service: str = ""
    wire: WireSettings = DEFAULT_WIRE
    refuse_below: Duration = 0.0
    reserve: Duration = 0.0
    raise_for_deadline: bool = True


class Compiled:
    """Options, made ready for use by every call."""

    __slots__ = ("budgets", "codec", "options")

    def __init__(self, options: Options) -> None:
        if not (options.refuse_below >= 0 and options.reserve >= 0):
            raise ValueError("refuse_below and reserve must be zero or more seconds")
        self.options = options
        self.codec = OutboundCodec.of(options.wire)
        outbound = options.wire.headers.outbound
        self.budgets: dict[bytes, Decode] = {name: decoder(how) for name, how in outbound}


class Call:
    """One call and its bounds, which are captured when it begins and hold wherever it is read.

    Attributes:
        scope: of its own, while it has one.
        received: bytes of the body so far; -1 until the head of the response is there.
    """

    __slots__ = (
        "_limit",
        "begun",
        "compiled",
        "here",
        "ledger",
        "library",
        "name",
        "now",
        "received",
        "request",
        "reserve",
        "scope",
    )

    def __init__(self, compiled: Compiled, request: Any) -> None:
        here = ambient()
        self.compiled = compiled
        self.request = request
        self.here = here
        self.library: Library = library_of(request)
        self._limit = NEVER if here is None else here.limit
        self.scope: Scope | None = None
        driver = None if here is None else here.driver
        self.now: Callable[[], Instant] = monotonic if driver is None else driver.now
        self.begun = self.now()
        self.received = -1
        self.ledger = ledger()
        self.reserve = max(compiled.options.reserve, hop_reserve())
        url = request.url
        path = url.raw_path.partition(b"?")[0].decode("ascii", "replace")
        host = compiled.options.service or url.host
        self.name = f"{request.method} {host}{path}"[:_LONGEST_NAME]

    @property
    def limit(self) -> Instant:
        """Monotonic instant at which it is over; infinite without a deadline.

        While a scope of its own is open, that one's: a server lifts the deadline of what goes on
        after the response.
        """
        return self._limit if self.scope is None else self.scope.limit

    def outlive(self) -> None:
        """Its scope closes; what was its limit last still holds."""
        self._limit, self.scope = self.limit, None

    @property
    def left(self) -> Duration:
        """Seconds that are left; zero or negative when the limit is spent."""
        return self.limit - self.now()

    # -- errors ----------------------------------------------------------------------------------

    def cause(self, detail: str, *below: Cause, kind: CauseKind = CauseKind.DEADLINE) -> Cause:
        """A cause that begins with this call, with what hops below are known to have said."""
        now, here = self.now(), self.here
        known = below + tuple(said for said in self._told() if said not in below)
        if here is None:
            return Cause(kind, self.name, "", now, NEVER, now - self.begun, detail, known)
        of_parent = here.cause_of(kind, now)
        return replace(
            of_parent,
            scope=f"{of_parent.scope}/{self.name}",
            budget=self.limit - self.begun,
            elapsed=now - self.begun,
            detail=detail,
            below=known,
        )

    def exceeded(self, detail: str, *below: Cause) -> DeadlineExceeded:
        """The error for a call whose limit is spent: ours, and the library's time-out as well."""
        error: DeadlineExceeded = self.library.exceeded(self.cause(detail, *below), self.request)
        return error

    def over(self) -> DeadlineExceeded:
        """The error for a limit that was spent at the point where the call is now."""
        return self.exceeded(self.doing())

    def doing(self) -> str:
        """What the call was waiting for, in words."""
        if self.received < 0:
            return "while waiting for the response"
        return f"while reading the body, {self.received} bytes received"

    def ended(self, cause: Cause) -> ScopeEnded:
        """The error for a call that was ended from above with `cause`."""
        if cause.kind is CauseKind.DEADLINE:
            return self.over()
        return Cancelled(cause)

    def explained(self, exc: BaseException) -> BaseException:
        """`exc` with a note, or our own error when it is a time-out since the limit is spent."""
        if isinstance(exc, ScopeEnded) or self.limit == NEVER:
            return exc
        left = self.left
        if isinstance(exc, self.library.api.TimeoutException) and left <= _EARLY:
            return self.over()
        budget = format_duration(self.limit - self.begun)
        exc.add_note(f"in call '{self.name}' (budget {budget}, {format_duration(left)} left)")
        return exc

    def _told(self) -> tuple[Cause, ...]:
        return () if self.ledger is None else tuple(self.ledger.below)

    def admit(self) -> None:
        """Refuse the call when too little is left.

        Raises:
            InsufficientBudget: nothing was sent, no connection was opened or taken.
        """
        if self.limit == NEVER:
            return
        left, needed = self.left, self.compiled.options.refuse_below
        if left <= 0 or left < needed:
            detail = f"not begun, {format_duration(max(0.0, left))} left"
            if needed > 0:
                detail += f", {format_duration(needed)} needed"
            # The call was given nothing; the budget that is told is that of the scope around it.
            whole = NEVER if self.here is None else self.here.budget
            cause = replace(self.cause(detail), budget=whole, elapsed=max(0.0, whole - left))
            raise self.library.insufficient(cause, self.request)

    # -- what is sent ----------------------------------------------------------------------------

    def outgoing(self, clamp: bool) -> Any:
        """The request as it is sent. The caller's own stays as it is: it may be sent once more.

        Args:
            clamp: whether the time-outs of the library must not be longer than what is left; not
                where a scope ends the call anyhow.
        """
        request, bounded = self.request, self.limit != NEVER
        carried = ANONYMOUS if self.here is None else self.here.carried
        compiled = self.compiled
        ours = compiled.codec.headers(
            self.left if bounded else None,
            carried.identity,
            "",
            carried.stage,
            carried.baggage,
            self.reserve,
        )
        if not ours and not bounded:
            return request
        fields = {**request.__dict__, "headers": _joined(request.headers, ours, compiled.budgets)}
        if bounded:
            fields["extensions"] = extensions = {**request.extensions}
            if clamp:
                extensions["timeout"] = clamped(extensions.get("timeout"), self.left)
        # Not `Request(...)`: that would parse the URL and build the headers and the body anew.
        kind: Any = request.__class__
        twin: Any = object.__new__(kind)
        twin.__dict__ = fields
        return twin

    def hop(self) -> str:
        """The name of the hop that answers."""
        name: str = self.compiled.options.service or self.request.url.host
        return name


def clamped(timeouts: Mapping[str, float | None] | None, left: Duration) -> dict[str, float]:
    """The library's own time-outs, none of them longer than what is left."""
    if not timeouts:
        return dict.fromkeys(_PHASES, left)
    bounded: dict[str, float] = {}
    for phase in _PHASES:
        own = timeouts.get(phase)
        bounded[phase] = left if own is None or own > left else own
    return bounded


def _joined(theirs: Any, ours: list[tuple[str, str]], budgets: Mapping[bytes, Decode]) -> Any:
    """The headers of a request with ours; one that is there already is never doubled."""
    headers = theirs.copy()
    present = {name.lower() for name, _ in theirs.raw}
    rows: list[tuple[bytes, bytes, bytes]] | None = getattr(headers, "_list", None)
    if rows is not None:
        # `headers[name] = value` would look through all of them for each of ours.
        mine = [(name.encode(), value.encode()) for name, value in ours]
        if present.isdisjoint([name for name, _ in mine]):
            rows += [(name, name, value) for name, value in mine]
            return headers
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


def sent_late(call: Call, extensions: dict[str, Any], *, is_async: bool) -> None:
    """Write the time left once more when the request is about to be written to its connection.

    Waiting for a place in the pool, connecting and the TLS handshake take from the same budget; a
    header from before would promise the next hop more than there is.
    """
    budgets = call.compiled.budgets
    theirs: Any = extensions.get("trace")

    def look(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(".send_request_headers.started"):
            request = info.get("request")
            if request is not None:
                headers = call.compiled.codec.headers(call.left, reserve=call.reserve)
                fresh = {name.encode(): value.encode() for name, value in headers}
                request.headers[:] = [
                    (name, _tighter(value, fresh.get(name.lower()), budgets.get(name.lower())))
                    for name, value in request.headers
                ]

    if is_async:

        async def atrace(event: str, info: Mapping[str, Any]) -> None:
            look(event, info)
            if theirs is not None:
                await theirs(event, info)

        extensions["trace"] = atrace
    else:

        def trace(event: str, info: Mapping[str, Any]) -> None:
            look(event, info)
            if theirs is not None:
                theirs(event, info)

        extensions["trace"] = trace


def _tighter(value: bytes, fresh: bytes | None, decode: Decode | None) -> bytes:
    if fresh is None or decode is None:
        return value
    return fresh if tightest(decode(value), decode(fresh)) != decode(value) else value


# -- the reply -------------------------------------------------------------------------------------


def content_of(response: Any) -> bool:
    """Whether the body should be looked into: it may say who was late."""
    if response.status_code < 400:
        return False
    headers = response.headers
    essence: str = headers.get("content-type", "").partition(";")[0].strip().lower()
    return essence == PROBLEM_TYPE and "content-encoding" not in headers


def observe(call: Call, response: Any, body: bytes) -> None:
    """Note what the hop below says about itself.

    Raises:
        DeadlineExceeded: it answered 504 because its deadline is spent, which is ours.
    """
    headers, notes = response.headers, call.ledger
    if notes is not None and (timing := headers.get(TIMING_HEADER)) is not None:
        for entry in parse_timing(timing):
            if entry.seconds is not None:
                notes.note(entry.name, entry.seconds)
    if response.status_code < 400:
        return
    told = headers.get(CAUSE_HEADER)
    cause = parse_problem(body) if body else None
    if cause is None and told is not None:
        cause = parse_cause_header(told)
    if cause is not None and not cause.hop:
        cause = replace(cause, hop=call.hop())
    if cause is not None and notes is not None:
        notes.blame(cause)
    if (
        told is not None
        and response.status_code == 504
        and call.compiled.options.raise_for_deadline
    ):
        below = () if cause is None else (cause,)
        raise call.exceeded(f"{call.hop()} answered that its deadline is spent", *below)
