"""What a call tells its server, and what that says of its end, with and without asyncio.

gRPC takes one time-out for both sides and rounds it up when it writes it down, so what it is given
is rounded down first. The rest goes and comes as metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, TypeAlias

import grpc

from holdfast.domain.cause import Cause
from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.errors import DeadlineExceeded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Phase
from holdfast.domain.wire.budget import DEFAULT_HEADERS
from holdfast.domain.wire.problem import CAUSE_HEADER, parse_cause_header
from holdfast.domain.wire.richstatus import DETAILS_KEY, parse_status, status_names
from holdfast.domain.wire.settings import WireSettings
from holdfast.domain.wire.timing import TIMING_HEADER, parse_timing
from holdfast.runtime.ambient import hop_reserve
from holdfast.runtime.clock import monotonic
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.outbound import Call, Outbound
from holdfast.runtime.scope import ambient

__all__ = [
    "DIAL",
    "EARLY",
    "LATER",
    "LONGEST_TEXT",
    "READY",
    "SOON",
    "Attempt",
    "Line",
    "hop_error",
    "note_times",
    "rounded",
    "said_below",
    "spoken",
    "wire_of",
]

READY: Final = grpc.ChannelConnectivity.READY
DIAL: Final = "look-up and TLS are in it"

SOON: Final[Duration] = 0.001
LATER: Final[Duration] = 0.02
"""Seconds between two looks at a channel that is not ready, at first and later on."""

EARLY: Final[Duration] = 0.005
"""Seconds that grpc may be ahead of the deadline that it was given: it goes by the wall clock."""

LONGEST_TEXT: Final = 200

Pairs: TypeAlias = tuple[tuple[str, str | bytes], ...]

_ROUTE: Final = (Phase.CONNECT, Phase.GRPC_HEADER, Phase.GRPC_MESSAGE)
_OWN: Final = "grpc-"
_SLACK: Final[Duration] = 0.002
"""Seconds that grpc may add on top, as it goes by whole milliseconds of the wall clock."""

# Below so many seconds grpc writes a time-out down in units of so many, rounded up
# (src/core/lib/transport/timeout_encoding.cc).
_UNITS: Final = ((0.9, 0.001), (9.9, 0.01), (99.0, 0.1), (990.0, 1.0), (9_900.0, 10.0))


class Line:
    """One method of one channel.

    Args:
        outbound: options of the channel.
        host: what the channel leads to.
        path: of the method: `/shop.Orders/Get`.

    Attributes:
        hop: name of the server, in causes that do not tell it.
        patient: shares of a call that waits until the channel is ready.
        target: host and path.
        watched: whether somebody is told of its calls.
    """

    __slots__ = ("_last", "hop", "host", "outbound", "path", "patient", "target", "watched")

    def __init__(self, outbound: Outbound, host: str, path: str) -> None:
        shares = outbound.options.shares
        self.outbound = outbound
        self.host = host
        self.path = path
        self.hop = outbound.options.service or host
        self.patient = replace(
            shares, bounded=tuple(phase for phase in shares.bounded if phase is not Phase.CONNECT)
        )
        self.target = host + path
        self.watched = outbound.options.observer is not None
        self._last: tuple[Carried, Pairs | None] | None = None

    def metadata(self, rpc: Attempt, theirs: Iterable[Any] | None) -> Pairs | None:
        """What is sent: what the caller sets, and what it does not set of ours; none at all."""
        if theirs:
            given: list[tuple[str, str | bytes]] = list(theirs)
            texts = {key: value for key, value in given if isinstance(value, str)}
            ours = {k: v for k, v in rpc.call.joined(texts).items() if not k.startswith(_OWN)}
            kept = [(key, value) for key, value in given if key.lower() not in ours]
            return (*kept, *ours.items())
        here, last = rpc.here, self._last
        carried = ANONYMOUS if here is None else here.carried
        if last is not None and last[0] is carried:
            return last[1]
        # The time left goes in a header of grpc's own, which it writes itself.
        pairs = tuple([pair for pair in rpc.call.headers() if not pair[0].startswith(_OWN)]) or None
        if not self.outbound.budgets:  # the rest is the same for all calls of one request
            self._last = carried, pairs
        return pairs


def wire_of(wire: WireSettings) -> WireSettings:
    """What of the settings is sent: grpc has a header of its own for the time that is left.

    Other headers for it go along where they are asked for by name, not by default: one costs 4 % of
    a short call, and tells nobody anything.
    """
    if wire.headers != DEFAULT_HEADERS:
        return wire
    return replace(wire, headers=replace(DEFAULT_HEADERS, outbound=()))


def rounded(left: Duration) -> Duration:
    """A time-out for grpc that tells the server no more than `left` seconds.

    grpc rounds up what it tells: 12.34 s would be 12.4 s there, and a deadline would move later
    from hop to hop.
    """
    if left == NEVER:
        return NEVER
    unit = 100.0
    for below, step in _UNITS:
        if left < below:
            unit = step
            break
    return max(0.0, math.floor(left / unit) * unit - _SLACK)


class Attempt:
    """One call, as it begins: its bounds, what grpc is told of them, and its record when needed.

    Most calls go well, on a channel that is ready, and nobody looks at their records. So these are
    made when somebody does, from what is noted here: it is a third of what a call costs.

    Args:
        line: the method.
        own: seconds that the caller allows, of grpc's own; none without.
        waits: whether it waits until the channel is ready, however long that takes.

    Attributes:
        begun: monotonic instant at which it began.
        here: the scope that it is made in; none outside of all.
        kept: seconds that are kept back from what is left.
        left: seconds that were left when it began; infinite without a deadline.
        limit: instant at which that is spent; infinite without a deadline.
        line: the method.
        now: the clock.
        ready: whether the channel was ready when it was last looked at.
        waits: whether it waits for that.
    """

    __slots__ = (
        "_call",
        "_own",
        "begun",
        "here",
        "kept",
        "left",
        "limit",
        "line",
        "now",
        "ready",
        "waits",
    )

    def __init__(self, line: Line, own: Duration | None, waits: bool | None) -> None:
        here = ambient()
        self.line = line
        self.here = here
        self.waits = waits
        self.ready = True
        self._own = own
        self._call: Call | None = None
        if here is None:
            self.now: Callable[[], Instant] = monotonic
            self.begun = monotonic()
            self.limit = self.left = NEVER
            self.kept = 0.0
        else:
            self.now = now = here.driver.now
            self.begun = begun = now()
            self.limit = limit = here.limit
            self.left = limit - begun
            self.kept = max(line.outbound.options.reserve, hop_reserve())

    @property
    def call(self) -> Call:
        """Its record, as it would have been from the beginning."""
        call = self._call
        return self._made() if call is None else call

    @property
    def ledger(self) -> Ledger | None:
        """That of the request that it works for; none without one."""
        here = self.here
        while here is not None and here.ledger is None:
            here = here.outer
        return None if here is None else here.ledger

    @property
    def recorded(self) -> bool:
        """Whether there is a record."""
        return self._call is not None

    def _made(self) -> Call:
        line, here, begun = self.line, self.here, self.begun
        self._call = call = Call(line.outbound, "grpc", line.host, line.path, line.target)
        call.here, call.begun, call.limit, call.now = here, begun, self.limit, self.now
        call.ledger = self.ledger
        trail = call.trail
        trail.begun, trail.route = begun, _ROUTE
        trail.limit = self.limit if self._own is None else min(self.limit, begun + self._own)
        if self.waits:  # to wait is what was asked for
            trail.shares = line.patient
        if self.ready:
            trail.begin(Phase.GRPC_HEADER, begun)
        return call

    # -- the time --------------------------------------------------------------------------------

    def hopeless(self) -> bool:
        """Whether too little is left to begin."""
        left = self.left
        return left <= 0 or left < self.line.outbound.options.refuse_below

    def seconds(self) -> Duration | None:
        """The time-out that grpc is given: what is left, or the caller's own if less."""
        own, left = self._own, self.left
        if left == NEVER:
            return None if own is None else max(0.0, own)
        left = rounded(left - self.kept)
        return left if own is None else max(0.0, min(left, own))

    def late(self, now: Instant) -> bool:
        """Whether an end at `now` is that of the ambient limit, and not of the caller's own."""
        left = rounded(self.left - self.kept)
        own = NEVER if self._own is None else self._own
        return left <= own and self.begun + left - EARLY <= now

    def late_for_caller(self, now: Instant) -> bool:
        """Whether it is that of the caller's own time-out."""
        return self._own is not None and self.begun + self._own - EARLY <= now


# -- what the server says of its end -----------------------------------------------------------


def said_below(rpc: Attempt, metadata: Iterable[Any] | None) -> Cause | None:
    """The cause that a server tells in its trailing metadata, in full before in one line.

    It is noted for whoever answers the request that the call was made for.
    """
    cause: Cause | None = None
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            cause = parse_status(value) or cause
        elif key == CAUSE_HEADER and isinstance(value, str) and cause is None:
            cause = parse_cause_header(value)
    if cause is not None and not cause.hop:
        cause = replace(cause, hop=rpc.line.hop)
    ledger = rpc.ledger
    if ledger is not None:
        note_times(ledger, metadata)
        if cause is not None:
            ledger.blame(cause)
    return cause


def note_times(ledger: Ledger, metadata: Iterable[Any] | None) -> None:
    """Note what a server says that it has spent."""
    for key, value in metadata or ():
        if key == TIMING_HEADER and isinstance(value, str):
            for entry in parse_timing(value):
                if entry.seconds is not None:
                    ledger.note(entry.name, entry.seconds)


def spoken(error: Any) -> str:
    """The status of an error, its text, and what the server calls it, in one short line."""
    text = f"{error.code().name}: {error.details() or ''}"[:LONGEST_TEXT]
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            names = ", ".join(status_names(value))[:LONGEST_TEXT]
            return f"{text} ({names})" if names else text
    return text


def hop_error(call: Call, error: Any, cause: Cause | None) -> DeadlineExceeded | None:
    """What is raised where a server says that what it was given is spent; none elsewhere.

    The header says so. A server that has ended a call by a limit of its own tells its cause alone:
    there is time left, and another try may be worth it.
    """
    options = call.outbound.options
    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or not options.raise_for_deadline:
        return None
    if not any(key == CAUSE_HEADER for key, _ in error.trailing_metadata() or ()):
        return None
    below = () if cause is None else (cause,)
    found = call.exceeded(call.cause("the server answered that its deadline is spent", *below))
    found.trail = call.trail
    return found
