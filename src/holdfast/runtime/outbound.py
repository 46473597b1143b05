"""One call to another service: what it may spend, what it tells, what it learns, how it fails.

What the carriers of all HTTP clients have in common. A carrier makes a `Call` per request, lets it
`admit` itself, sends its `headers`, keeps its `trail`, hands it the reply, and raises what it makes
of an error. Whose library it is shows in the errors alone: they are ours and the library's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS
from holdfast.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    InsufficientBudget,
    PhaseTimeout,
    ScopeEnded,
)
from holdfast.domain.instant import NEVER, Duration
from holdfast.domain.phases import DEFAULT_SHARES, Ended, Shares, Trail
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
from holdfast.ports.trails import TrailObserver
from holdfast.runtime.ambient import hop_reserve, ledger
from holdfast.runtime.bounded import Bounded

__all__ = ["PEEK", "Call", "ErrorClasses", "Options", "Outbound", "both"]

PEEK: Final = 16_384
"""Bytes of a problem document that are looked at, before it is handed on as it came."""

_LONGEST_NAME: Final = 96


@dataclass(frozen=True, slots=True)
class Options:
    """What a carrier was told.

    Attributes:
        service: name of the service that is called; the host when empty.
        wire: which headers are sent.
        refuse_below: seconds; a call with less left is refused before it is sent.
        reserve: seconds that are kept back from what the next hop is told; the policy of the
            request may ask for more.
        raise_for_deadline: whether a 504 of a hop that ran out of time is raised as
            `DeadlineExceeded`, with that hop's cause in `cause.below`, or returned.
        shares: how the budget is divided over the phases.
        observer: is told of every call.
    """

    service: str = ""
    wire: WireSettings = DEFAULT_WIRE
    refuse_below: Duration = 0.0
    reserve: Duration = 0.0
    raise_for_deadline: bool = True
    shares: Shares = DEFAULT_SHARES
    observer: TrailObserver | None = None


@dataclass(frozen=True, slots=True)
class ErrorClasses:
    """Our errors, as the client's library expects them: each is one of the library's as well.

    Attributes:
        client: name of the library.
        exceeded: makes the error of a spent limit from its cause.
        insufficient: makes the error of a call that is refused from its cause.
        phase: makes the error of a spent share from the record of the call.
    """

    client: str
    exceeded: Callable[[Cause], DeadlineExceeded] = DeadlineExceeded
    insufficient: Callable[[Cause], InsufficientBudget] = InsufficientBudget
    phase: Callable[[Trail], PhaseTimeout] = PhaseTimeout


@cache
def both(ours: Any, theirs: type, home: str, *blank: str) -> Any:
    """The class of errors that is one of ours and one of a client's library too, made once.

    An error of it goes to another process and comes back as what it is, with its record and its
    notes, but without what is in `blank`: a request may be what cannot be pickled. Where the
    library is not installed it comes out as ours alone.

    Args:
        ours: takes a cause or a record.
        theirs: of the library.
        home: name of the module that it appears under.
        blank: attributes that the library fills in, for example `request`; none at first.
    """
    origin = (ours, theirs.__module__, theirs.__qualname__, home, blank)

    def init(self: Any, what: Cause | Trail) -> None:
        ours.__init__(self, what)
        self.__dict__.update(dict.fromkeys(blank))

    def reduce(self: Any) -> tuple[Any, ...]:
        kept = {name: value for name, value in self.__dict__.items() if name not in blank}
        return _remade, (*origin, self.args[0]), kept

    def copied(self: Any) -> Any:
        twin = type(self)(self.args[0])
        twin.__dict__.update(self.__dict__)
        return twin

    body = {"__init__": init, "__str__": ours.__str__, "__module__": home}
    return type(ours.__name__, (ours, theirs), {**body, "__reduce__": reduce, "__copy__": copied})


def _remade(
    ours: Any, module: str, name: str, home: str, blank: tuple[str, ...], what: Cause | Trail
) -> Any:
    try:
        theirs: type = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return ours(what)
    return both(ours, theirs, home, *blank)(what)


class Outbound:
    """Options, made ready for use by every call of a client."""

    __slots__ = ("budgets", "codec", "errors", "options")

    def __init__(self, options: Options, errors: ErrorClasses) -> None:
        if not (options.refuse_below >= 0 and options.reserve >= 0):
            raise ValueError("refuse_below and reserve must be zero or more seconds")
        self.options = options
        self.errors = errors
        self.codec = OutboundCodec.of(options.wire)
        outbound = options.wire.headers.outbound
        self.budgets: dict[bytes, Decode] = {name: decoder(how) for name, how in outbound}


class Call(Bounded):
    """One call and its bounds, which are captured when it begins and hold wherever it is read.

    Args:
        outbound: of the client.
        method: of the request.
        host: of its URL.
        path: of its URL, without the query.
        target: the whole of its URL for people, without secrets.

    Attributes:
        trail: its record.
    """

    __slots__ = ("_host", "_told", "ledger", "outbound", "trail")

    def __init__(self, outbound: Outbound, method: str, host: str, path: str, target: str) -> None:
        self.outbound = outbound
        self._host = outbound.options.service or host
        super().__init__(f"{method} {self._host}{path}"[:_LONGEST_NAME])
        self.ledger = ledger()
        self._told = False
        self.trail = Trail(
            f"{method} {target}",
            self.begun,
            self.limit,
            outbound.options.shares,
            client=outbound.errors.client,
        )

    # -- before ----------------------------------------------------------------------------------

    def admit(self, needed: Duration = 0.0) -> None:
        """See `Bounded`; what the client was told to need is needed too."""
        super().admit(max(needed, self.outbound.options.refuse_below))

    def exceeded(self, cause: Cause) -> DeadlineExceeded:
        """See `Bounded`."""
        return self.outbound.errors.exceeded(cause)

    def insufficient(self, cause: Cause) -> InsufficientBudget:
        """See `Bounded`."""
        return self.outbound.errors.insufficient(cause)

    def headers(self) -> list[tuple[str, str]]:
        """What is sent: what is left now, identity, stage, baggage."""
        carried = ANONYMOUS if self.here is None else self.here.carried
        return self.outbound.codec.headers(
            None if self.limit == NEVER else self.left,
            carried.identity,
            "",
            carried.stage,
            carried.baggage,
            max(self.outbound.options.reserve, hop_reserve()),
        )

    def joined(self, theirs: Mapping[str, str]) -> dict[str, str]:
        """Those of `headers` that a request lacks, or has in a looser form.

        Args:
            theirs: the headers of the request; its keys are compared in lower case.
        """
        present = {name.lower(): value for name, value in theirs.items()}
        ours: dict[str, str] = {}
        for name, value in self.headers():
            own = present.get(name)
            if own is None:
                if name != "tracestate" or "traceparent" not in present:
                    ours[name] = value
            elif (decode := self.outbound.budgets.get(name.encode("ascii"))) is not None:
                said = decode(own.encode("latin-1", "replace"))
                if said is None or tightest(said, decode(value.encode())) != said:
                    ours[name] = value
            elif name == "baggage":
                given, _ = parse_baggage(own.encode("latin-1", "replace"))
                carried, _ = parse_baggage(value.encode())
                ours[name] = format_baggage({**carried, **given})
        return ours

    # -- after -----------------------------------------------------------------------------------

    def over(self, detail: str = "") -> DeadlineExceeded:
        """The error for a limit that is spent at the point where the call is now."""
        trail = self.trail
        trail.end(self.now(), Ended.TIMEOUT)
        error = super().over(detail or trail.brief())
        error.trail = trail
        error.add_note(trail.line())
        return error

    def ended(self, cause: Cause) -> ScopeEnded:
        """The error for a call that was ended from above with `cause`."""
        return self.over() if cause.kind is CauseKind.DEADLINE else Cancelled(cause)

    def explained(self, exc: Exception, *, late: bool) -> Exception:
        """What is raised for `exc`: our own error when the time is over, else itself with a note.

        Args:
            exc: what the client's library raised.
            late: whether it says that a time-out has passed.
        """
        if isinstance(exc, ScopeEnded | PhaseTimeout):
            return exc
        now = self.now()
        share = share_behind(exc)
        if late and self.trail.spent(now):
            return self.over()
        self.trail.end(now, Ended.TIMEOUT if late else Ended.FAILED, type(exc).__name__)
        if share is not None:
            return self.outbound.errors.phase(share.trail)
        exc.add_note(self.trail.line())
        return exc

    def done(self, error: BaseException | None = None) -> None:
        """The call is over: whoever watches calls is told, once."""
        self.trail.end(self.now())
        observer = self.outbound.options.observer
        if observer is not None and not self._told:
            self._told = True
            observer.call_ended(self.trail, error)

    def cause(self, detail: str, *below: Cause, kind: CauseKind = CauseKind.DEADLINE) -> Cause:
        """See `Bounded`; with what hops below are known to have said."""
        told: tuple[Cause, ...] = () if self.ledger is None else tuple(self.ledger.below)
        known = below + tuple(said for said in told if said not in below)
        return super().cause(detail, *known, kind=kind)

    @staticmethod
    def worth_a_look(status: int, headers: Mapping[str, str]) -> bool:
        """Whether the body should be looked into: it may say who was late."""
        if status < 400:
            return False
        essence = headers.get("content-type", "").partition(";")[0].strip().lower()
        return essence == PROBLEM_TYPE and "content-encoding" not in headers

    def observe(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Note what the hop below says about itself.

        Args:
            status: of its answer.
            headers: of its answer; keys are looked up in lower case.
            body: the beginning of it, where it is worth a look.

        Raises:
            DeadlineExceeded: it answered 504 because its deadline is spent, which is ours.
        """
        notes = self.ledger
        if notes is not None and (timing := headers.get(TIMING_HEADER)) is not None:
            for entry in parse_timing(timing):
                if entry.seconds is not None:
                    notes.note(entry.name, entry.seconds)
        if status < 400:
            return
        told = headers.get(CAUSE_HEADER)
        cause = parse_problem(body) if body else None
        if cause is None and told is not None:
            cause = parse_cause_header(told)
        if cause is not None and not cause.hop:
            cause = replace(cause, hop=self._host)
        if cause is not None and notes is not None:
            notes.blame(cause)
        if told is not None and status == 504 and self.outbound.options.raise_for_deadline:
            below: Iterable[Cause] = () if cause is None else (cause,)
            detail = f"{self._host} answered that its deadline is spent"
            error = self.exceeded(self.cause(detail, *below))
            error.trail = self.trail
            raise error


def share_behind(exc: BaseException) -> PhaseTimeout | None:
    """The spent share that an error of a library was made from, if it was one."""
    seen = 0
    at: Any = exc
    while at is not None and seen < 8:
        if isinstance(at, PhaseTimeout):
            return at
        inner = at.args[0] if at.args and isinstance(at.args[0], BaseException) else None
        reason = getattr(at, "reason", None)
        at = (
            at.__cause__
            or (reason if isinstance(reason, BaseException) else None)
            or inner
            or at.__context__
        )
        seen += 1
    return None
