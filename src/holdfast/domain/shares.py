"""The phases of a call, and how one budget is divided over them.

    pool.wait -> dns.resolve -> tcp.connect -> proxy.connect -> tls.handshake
              -> http.request -> http.header -> http.body        (or grpc.header -> grpc.message)
              -> sql.statement, redis.command                    (with drivers that dial themselves)

`Shares` says how much of what is left a phase may take when it begins, so that what an earlier one
did not use carries over. The names are the same for every client, in errors, on spans and in
metrics.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from holdfast.domain.instant import NEVER, Duration

__all__ = ["DEFAULT_SHARES", "DIALLING", "Phase", "Shares"]


class Phase(StrEnum):
    """What a call waits for. The values are stable: they are in errors, spans and metrics."""

    POOL = "pool.wait"
    DNS = "dns.resolve"
    CONNECT = "tcp.connect"
    PROXY = "proxy.connect"
    TLS = "tls.handshake"
    REQUEST = "http.request"
    HEADER = "http.header"
    BODY = "http.body"
    GRPC_HEADER = "grpc.header"
    GRPC_MESSAGE = "grpc.message"
    STATEMENT = "sql.statement"
    COMMAND = "redis.command"

    # An enumeration's own is a call of Python, in every look-up; this one a text keeps.
    __hash__ = str.__hash__

    @property
    def event(self) -> str:
        """Name of the event that says that the time was spent here, `tcp.connect.timeout`."""
        return f"{self.value}.timeout"


DIALLING: Final = (Phase.DNS, Phase.CONNECT, Phase.PROXY, Phase.TLS)
"""The phases of a dial. In all of them nothing of the request has been sent."""

_Plans = dict[Any, tuple[float, Duration, bool]]
_ORDER: Final = {phase: place for place, phase in enumerate(Phase)}
# The numbers leave a healthy call far more than it needs, and a tenth of a second for the body.
_WEIGHTS: Final[Mapping[Phase, float]] = {
    Phase.POOL: 0.10,
    Phase.DNS: 0.15,
    Phase.CONNECT: 0.20,
    Phase.PROXY: 0.20,
    Phase.TLS: 0.20,
    Phase.REQUEST: 0.10,
    Phase.HEADER: 0.25,
    Phase.BODY: 0.10,
    Phase.GRPC_HEADER: 0.25,
    Phase.GRPC_MESSAGE: 0.10,
}
# One lost packet must be survived: a resolver asks again after a second at most, and Linux sends a
# SYN again after one second (RFC 6298, section 2).
_FLOORS: Final = {Phase.DNS: 1.0, Phase.CONNECT: 1.5, Phase.PROXY: 1.0, Phase.TLS: 1.0}


@dataclass(frozen=True, slots=True)
class Shares:
    """How one budget is divided over the phases of a call.

    A phase may take its weight, among those of itself and of the phases still to come, of what is
    left when it begins; at least its floor, at most what is left. For the phases in `bounded` that
    is a limit. The others may take all that is left, and the share only says what was meant.

    With short budgets the floors rule, and a phase is bounded by the whole alone. With long ones a
    dead name server cannot eat the time of what comes after it.

    Attributes:
        weights: by phase, positive; relative to one another.
        floors: seconds, by phase; none where a phase is not named.
        bounded: phases whose share is a limit: by default those of a dial. To bound
            `http.header` means to give up on a server that works for longer than its share.

    Raises:
        ValueError: a weight is not positive, a floor is negative, or a bounded phase has no weight.
    """

    weights: Mapping[Phase, float] = field(default_factory=lambda: _WEIGHTS)
    floors: Mapping[Phase, Duration] = field(default_factory=lambda: _FLOORS)
    bounded: Collection[Phase] = DIALLING
    _plans: _Plans = field(default_factory=_Plans, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("weights", "floors"):  # copies: what was worked out from them must stay true
            object.__setattr__(self, name, MappingProxyType({**getattr(self, name)}))
        for phase, weight in self.weights.items():
            if not 0 < weight < NEVER:
                raise ValueError(f"the weight of {phase.value} must be positive, got {weight}")
        for phase, floor in self.floors.items():
            if not floor >= 0:
                raise ValueError(f"the floor of {phase.value} must not be negative, got {floor}")
        for phase in self.bounded:
            if phase not in self.weights:
                raise ValueError(f"{phase.value} is bounded, so it needs a weight")

    def share(self, phase: Phase, left: Duration, ahead: Collection[Phase] = ()) -> Duration:
        """Seconds that are meant for `phase`.

        Args:
            phase: the one that begins; without a weight it may take all.
            left: seconds that are left for the whole; infinite without a limit.
            ahead: the phases that are still to come.
        """
        weight = self.weights.get(phase)
        if left == NEVER or weight is None:
            return left
        total = weight + sum(self.weights.get(later, 0.0) for later in ahead)
        return max(0.0, min(left, max(self.floors.get(phase, 0.0), left * (weight / total))))

    def plan(self, phase: Phase, route: tuple[Phase, ...]) -> tuple[float, Duration, bool]:
        """What `share` goes by on a route: part, floor, and whether it is a limit. Remembered."""
        found = self._plans.get((phase, route))
        if found is None:
            weight, place = self.weights.get(phase), _ORDER[phase]
            part, floor = 1.0, 0.0
            if weight is not None:
                ahead = sum(self.weights.get(p, 0.0) for p in route if _ORDER[p] > place)
                part, floor = weight / (weight + ahead), self.floors.get(phase, 0.0)
            found = self._plans[phase, route] = (part, floor, phase in self.bounded)
        return found

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only view cannot be pickled
        return type(self), ({**self.weights}, {**self.floors}, tuple(self.bounded))


DEFAULT_SHARES: Final = Shares()
