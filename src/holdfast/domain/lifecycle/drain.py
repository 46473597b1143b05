"""How a server lets go of its connections so that nothing is lost that a client has sent.

Rule 1. Announce first. From the beginning every response says that its connection ends, and HTTP/2
        connections are told to open their streams elsewhere.
Rule 2. Lame duck. New connections are still served, since whoever sends them does not know yet. It
        ends on evidence (none came for a while) or with its share of the time.
Rule 3. Then the listener goes, but first what waits in its accept queue is taken in: the kernel has
        told those clients that they are connected. WebSockets are told why they end.
Rule 4. A connection is closed when it has been quiet for a while, counted from the announcement
        and from its last byte: a request may be on the wire. One that is served, or whose request
        is not complete, is left alone. One that was answered without the announcement has its
        turn again.
Rule 5. Closing is bounded as well: a peer over TLS or of a WebSocket that does not answer the
        farewell is cut off, unless it still has something to read.
Rule 6. At the deadline what is left is cut, gets a moment to unwind, and is then abandoned by name.
Rule 7. A second request to stop at once skips to the cut.

A machine: it decides, the driver of each server performs, and looks again when it is told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from holdfast.domain.instant import NEVER, Duration, Instant

__all__ = [
    "Announce",
    "Begun",
    "Cut",
    "CutOff",
    "Decision",
    "Done",
    "Drain",
    "DrainState",
    "DrainTerms",
    "Event",
    "Kind",
    "Line",
    "Looked",
    "ReleaseQuiet",
    "SayFarewell",
    "Step",
    "StopAccepting",
    "Verdict",
    "opening",
    "verdict",
]


class Step(StrEnum):
    """Where a drain is. Strictly forward."""

    SERVING = "serving"
    LAME_DUCK = "lame_duck"
    LETTING_GO = "letting_go"
    CUTTING = "cutting"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class DrainTerms:
    """The times of a drain, in seconds.

    Attributes:
        calm: the lame duck ends when no new connection came for so long.
        least: but no sooner than this after its beginning.
        most: and no later.
        drain: what is served has so long after it, if the deadline of the stop leaves that.
        quiet: a connection without a request is closed when nothing came over it for so long.
        farewell: a peer has so long to answer a WebSocket's close frame.
        parting: a TLS peer has so long to close its side when it has everything.
        unwinding: what was cut has so long to clean up.
        handshakes: whether connections may be under way that are not seen yet (TLS), so that a
            quiet window is waited out after the listener is gone.
    """

    calm: Duration = 0.5
    least: Duration = 0.0
    most: Duration = 5.0
    drain: Duration = NEVER
    quiet: Duration = 1.0
    farewell: Duration = 2.0
    parting: Duration = 0.5
    unwinding: Duration = 1.0
    handshakes: bool = False

    def __post_init__(self) -> None:
        for name in ("calm", "least", "most", "drain", "quiet", "farewell", "parting", "unwinding"):
            value: float = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} must be zero or more seconds, got {value}")


# -- one connection --------------------------------------------------------------------------------


class Kind(StrEnum):
    """What a connection speaks."""

    HTTP = "http"
    WEBSOCKET = "websocket"


class Line(NamedTuple):
    """One connection, as far as a drain needs to know it.

    Attributes:
        kind: what it speaks.
        busy: whether a request of it is served, or waits behind one that is.
        partial: whether a request has begun to come and its headers are not complete.
        touched: instant at which something last came or was answered.
        leaving: instant at which it was told to close; infinite when it was not.
        unsent: bytes that the client has not taken yet.
        tls: whether its close needs an answer of the peer.
    """

    kind: Kind
    busy: bool
    partial: bool
    touched: Instant
    leaving: Instant = NEVER
    unsent: int = 0
    tls: bool = False


class Verdict(StrEnum):
    """What becomes of a connection."""

    KEEP = "keep"
    CLOSE = "close"
    ABORT = "abort"


def verdict(line: Line, begun: Instant, terms: DrainTerms, now: Instant) -> tuple[Verdict, Instant]:
    """What to do with a connection while quiet ones are released, and when to look again.

    Args:
        line: the connection.
        begun: instant of the announcement.
        terms: the times of the drain.
        now: the present instant.
    """
    if line.leaving != NEVER:
        if line.unsent or not (line.tls or line.kind is Kind.WEBSOCKET):
            return Verdict.KEEP, NEVER  # the system sees to it, or the deadline
        patience = terms.farewell if line.kind is Kind.WEBSOCKET else terms.parting
        due = line.leaving + patience
        return (Verdict.ABORT, now) if due <= now else (Verdict.KEEP, due)
    if line.busy or line.partial or line.kind is Kind.WEBSOCKET:
        return Verdict.KEEP, NEVER
    due = max(begun, line.touched) + terms.quiet
    return (Verdict.CLOSE, now) if due <= now else (Verdict.KEEP, due)


# -- the drain -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """The stop has begun; what is served must be done by `deadline`."""

    deadline: Instant


@dataclass(frozen=True, slots=True)
class Looked:
    """The driver has looked.

    Attributes:
        open: connections and requests that are there.
        accepted: instant at which the last new connection came; minus infinity for never.
    """

    open: int
    accepted: Instant


@dataclass(frozen=True, slots=True)
class CutOff:
    """Somebody cannot wait: what is open is to be cut now."""


Event: TypeAlias = Begun | Looked | CutOff


@dataclass(frozen=True, slots=True)
class Announce:
    """From now on every response says that its connection ends."""


@dataclass(frozen=True, slots=True)
class StopAccepting:
    """Take in what waits in the accept queue, then close the listener.

    Attributes:
        why: what ended the lame duck, for people.
    """

    why: str


@dataclass(frozen=True, slots=True)
class SayFarewell:
    """Send WebSockets their close frame."""


@dataclass(frozen=True, slots=True)
class ReleaseQuiet:
    """From now on close what `verdict` says."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Cancel what is served, with the cause of the stop."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more to do; what is still there is abandoned.

    Attributes:
        left: how many that is.
    """

    left: int


Decision: TypeAlias = Announce | StopAccepting | SayFarewell | ReleaseQuiet | Cut | Done

_LATEST: Final[Duration] = 0.05
"""Seconds after the listener is gone in which a connection that was just taken in may appear."""


@dataclass(frozen=True, slots=True)
class DrainState:
    """How far a drain is.

    Attributes:
        terms: its times.
        step: where it is.
        begun: instant of the announcement.
        since: instant at which the present step began.
        deadline: instant by which what is served must be done.
        look: instant at which the driver has to look again at the latest.
    """

    terms: DrainTerms
    step: Step = Step.SERVING
    begun: Instant = 0.0
    since: Instant = 0.0
    deadline: Instant = NEVER
    look: Instant = NEVER


def opening(terms: DrainTerms) -> DrainState:
    """The state of a server that is not told to stop."""
    return DrainState(terms)


class Drain:
    """See the module. Every event is safe in every state: what does not fit changes nothing."""

    def step(
        self, state: DrainState, event: Event, now: Instant
    ) -> tuple[DrainState, Sequence[Decision]]:
        """The next state, and what the driver must do, in this order."""
        match event:
            case Begun(deadline):
                if state.step is not Step.SERVING:
                    return state, ()
                begun = replace(
                    state, step=Step.LAME_DUCK, begun=now, since=now, deadline=deadline, look=now
                )
                return begun, (Announce(),)
            case CutOff():
                return self._cut(state, now)
            case Looked():
                return self._looked(state, event, now)

    def _looked(
        self, state: DrainState, event: Looked, now: Instant
    ) -> tuple[DrainState, Sequence[Decision]]:
        decided: list[Decision] = []
        if state.step in (Step.LAME_DUCK, Step.LETTING_GO) and now >= state.deadline and event.open:
            return self._cut(state, now)
        if state.step is Step.LAME_DUCK:
            ends, why = _end_of_lame_duck(state, event.accepted)
            if now < ends:
                return replace(state, look=ends), ()
            decided = [StopAccepting(why), SayFarewell(), ReleaseQuiet()]
            # What the lame duck did not need is not for work that hangs.
            deadline = min(state.deadline, now + state.terms.drain)
            state = replace(state, step=Step.LETTING_GO, since=now, deadline=deadline)
        if state.step is Step.LETTING_GO:
            unseen = max(_LATEST, state.terms.quiet) if state.terms.handshakes else _LATEST
            unseen = min(state.since + unseen, max(now, state.deadline))
            if event.open or now < unseen:
                look = state.deadline if event.open else unseen
                return replace(state, look=look), decided
            return _done(state, now, 0, decided)
        if state.step is Step.CUTTING and (
            not event.open or now >= state.since + state.terms.unwinding
        ):
            return _done(state, now, event.open, decided)
        return state, decided

    def _cut(self, state: DrainState, now: Instant) -> tuple[DrainState, Sequence[Decision]]:
        if state.step in (Step.CUTTING, Step.DONE):
            return state, ()
        decided: list[Decision] = []
        begun = state.begun
        if state.step is Step.SERVING:
            begun = now
            decided.append(Announce())
        if state.step in (Step.SERVING, Step.LAME_DUCK):
            decided += [StopAccepting("the time is over"), SayFarewell(), ReleaseQuiet()]
        decided.append(Cut())
        look = now + state.terms.unwinding
        cutting = replace(state, step=Step.CUTTING, begun=begun, since=now, look=look)
        return cutting, decided


def _end_of_lame_duck(state: DrainState, accepted: Instant) -> tuple[Instant, str]:
    terms = state.terms
    calm = max(state.begun, accepted) + terms.calm
    ends = max(state.begun + terms.least, min(calm, state.begun + terms.most))
    # The connections need their quiet window after it.
    last = max(state.begun, state.deadline - terms.quiet)
    if ends >= last:
        return last, "no more time was left for it"
    if calm <= ends:
        return ends, "no new connection came any more"
    return ends, "its share of the time is over"


def _done(
    state: DrainState, now: Instant, left: int, decided: list[Decision]
) -> tuple[DrainState, Sequence[Decision]]:
    return replace(state, step=Step.DONE, since=now, look=NEVER), [*decided, Done(left)]
