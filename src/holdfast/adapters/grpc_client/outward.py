"""What a call tells its server, with and without asyncio.

gRPC takes one time-out for both sides and rounds it up when it writes it down, so what it is given
is rounded down first. The rest goes and comes as metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, TypeAlias

import grpc

from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.errors import InsufficientBudget
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.phases import Phase
from holdfast.domain.wire.budget import DEFAULT_HEADERS
from holdfast.domain.wire.settings import WireSettings
from holdfast.runtime.ambient import hop_reserve
from holdfast.runtime.clock import monotonic
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.outbound import Call, Outbound
from holdfast.runtime.scope import ambient

__all__ = [
    "DIAL",
    "LATER",
    "READY",
    "SOON",
    "Attempt",
    "Line",
    "rounded",
    "wire_of",
]

READY: Final = grpc.ChannelConnectivity.READY
DIAL: Final = "look-up and TLS are in it"

SOON: Final[Duration] = 0.001
LATER: Final[Duration] = 0.02
"""Seconds between two looks at a channel that is not ready, at first and later on."""

Pairs: TypeAlias = tuple[tuple[str, str | bytes], ...]

_ROUTE: Final = (Phase.CONNECT, Phase.GRPC_HEADER, Phase.GRPC_MESSAGE)
_OWN: Final = "grpc-"

_LONGEST: Final[Duration] = 365 * 86_400.0
"""Seconds. grpc counts nanoseconds in 64 bits: what is centuries away is over at once there."""

_SLACK: Final[Duration] = 0.002
"""Seconds that grpc may add on top, as it goes by whole milliseconds of the wall clock."""

# Below 1 s, 10 s, 100 s and so on grpc writes a time-out down in units of so many seconds, rounded
# up (src/core/lib/transport/timeout_encoding.cc). A server that reads one goes by other limits, see
# grpc_server. Here each is left some time before it: the coarser unit is the safe side there, as
# what grpc adds of its own clock may take a time-out over the limit.
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
        own: seconds that the caller allows, of grpc's own; none without, or infinite.
        waits: whether it waits until the channel is ready, however long that takes.

    Raises:
        ValueError: `own` is not a number.

    Attributes:
        asked: whether the caller has cancelled it.
        begun: monotonic instant at which it began.
        here: the scope that it is made in; none outside of all.
        kept: seconds that are kept back from what is left.
        left: seconds that were left when it began; infinite without a deadline.
        limit: instant at which that is spent; infinite without a deadline.
        line: the method.
        now: the clock.
        own: seconds that the caller allows; none without.
        ready: whether the channel was ready when it was last looked at.
        waits: whether it waits for that.
    """

    __slots__ = (
        "_call",
        "asked",
        "begun",
        "here",
        "kept",
        "left",
        "limit",
        "line",
        "now",
        "own",
        "ready",
        "waits",
    )

    def __init__(self, line: Line, own: Duration | None, waits: bool | None) -> None:
        here = ambient()
        if own is not None:
            own = _own(own)
        self.line = line
        self.here = here
        self.waits = waits
        self.ready = True
        self.asked = False
        self.own = own
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
        trail.limit = self.limit if self.own is None else min(self.limit, begun + self.own)
        if self.waits:  # to wait is what was asked for
            trail.shares = line.patient
        if self.ready:
            trail.begin(Phase.GRPC_HEADER, begun)
        return call

    # -- the time --------------------------------------------------------------------------------

    def hopeless(self) -> bool:
        """Whether too little is left to begin."""
        own, left = self.own, self.left - self.kept
        if own is not None and own <= 0:
            return True
        return left <= 0 or left < self.line.outbound.options.refuse_below

    def refusal(self) -> InsufficientBudget:
        """The error of a call that is hopeless, which whoever watches calls is told."""
        self.ready = False  # so that nothing is said to have begun
        call, own, left = self.call, self.own, max(0.0, self.left)
        needed = self.line.outbound.options.refuse_below
        if own is not None and own <= 0:
            detail = f"not begun, its own time-out is {format_duration(own)}"
        else:
            detail = f"not begun, {format_duration(left)} left"
            if self.kept > 0:
                detail += f", {format_duration(self.kept)} kept back"
            if needed > 0:
                detail += f", {format_duration(needed)} needed"
        # It was given nothing; the budget that is told is that of the scope around it.
        whole = NEVER if self.here is None else self.here.budget
        elapsed = 0.0 if whole == NEVER else max(0.0, whole - left)
        cause = replace(call.cause(detail), budget=whole, elapsed=elapsed)
        error = call.outbound.errors.insufficient(cause)
        call.done(error)
        return error

    def seconds(self) -> Duration | None:
        """The time-out that grpc is given: what is left, or the caller's own if less."""
        own, left = self.own, self.left
        if left == NEVER:
            return own
        left = rounded(left - self.kept)
        if left > _LONGEST:
            left = _LONGEST
        return left if own is None else min(left, own)


def _own(seconds: Duration) -> Duration | None:
    """What grpc takes of a time-out of the caller's."""
    if math.isnan(seconds):
        raise ValueError("timeout must be a number of seconds, not nan")
    return None if seconds == NEVER else min(seconds, _LONGEST)
