"""The record of a call over the network: what each phase took of one budget, address by address.

Its phases, their names and what is meant for each are in `holdfast.domain.shares`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, NamedTuple

from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.shares import DEFAULT_SHARES, DIALLING, Phase, Shares

__all__ = [
    "DEFAULT_SHARES",
    "DIALLING",
    "Attempt",
    "Ended",
    "Phase",
    "Shares",
    "Step",
    "Trail",
]


class Ended(StrEnum):
    """How a phase ended."""

    DONE = "done"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Step(NamedTuple):
    """One phase that is over.

    Attributes:
        phase: which.
        began: seconds after the call began.
        took: seconds.
        share: seconds that were meant for it.
        left: seconds that were left of the whole when it began.
        ended: how.
        detail: what else is known, for people: name servers, an error; may be empty.
    """

    phase: Phase
    began: Duration
    took: Duration
    share: Duration
    left: Duration
    ended: Ended
    detail: str = ""


class Attempt(NamedTuple):
    """One address that was tried.

    Attributes:
        address: for people, `10.0.0.7:443` or `[::1]:443`.
        began: seconds after the call began.
        took: seconds.
        result: `connected`, `timeout`, `cancelled` (another one was faster), or the error.
    """

    address: str
    began: Duration
    took: Duration
    result: str


_MOST: Final = 64
"""Steps and attempts that are kept of a call, the last one always; redirects may be many."""

_FULL_ROUTE: Final = tuple(phase for phase in Phase if not phase.value.startswith("grpc."))


class Trail:
    """The record of one call, written while it runs. One writer at a time.

    Attributes:
        target: what is called, for people: `orders.local:443`, or `GET http://orders.local/1`.
        client: name of the library that calls, `httpx`, `aiohttp`; empty for a dial of ours.
        begun: monotonic instant at which it began.
        limit: monotonic instant at which it must be over; infinite without a limit.
        shares: how the budget is divided.
        route: the phases that this call goes through; those after the present one share the rest.
        sent: bytes that the peer's kernel or our own has taken.
        received: bytes that came.
        redirects: how often the call was sent elsewhere.
        interim: status of the last interim response (1xx); 0 without one.
        attempts: the addresses that were tried.
        steps: the phases that are over.
        current: the phase under way; none between phases and at the end.
    """

    __slots__ = (
        "_began",
        "_gone",
        "_left",
        "_share",
        "attempts",
        "begun",
        "client",
        "current",
        "interim",
        "limit",
        "received",
        "redirects",
        "route",
        "sent",
        "shares",
        "steps",
        "target",
    )

    def __init__(
        self,
        target: str,
        begun: Instant,
        limit: Instant = NEVER,
        shares: Shares = DEFAULT_SHARES,
        *,
        client: str = "",
        route: tuple[Phase, ...] = _FULL_ROUTE,
    ) -> None:
        self.target, self.client = target, client
        self.begun, self.limit = begun, limit
        self.shares, self.route = shares, route
        self.sent = self.received = self.redirects = self.interim = 0
        self.attempts: list[Attempt] = []
        self.steps: list[Step] = []
        self.current: Phase | None = None
        self._gone: dict[Phase, Duration] = {}
        self._began: Instant = begun
        self._share: Duration = NEVER
        self._left: Duration = NEVER

    def begin(self, phase: Phase, now: Instant) -> Instant:
        """`phase` begins, and the one under way is done; the instant by which it must be over.

        That is the end of its share where shares bound the phase, and the limit of the whole
        elsewhere; never later than the latter.
        """
        if self.current is not None:
            self.end(now)
        self.current = phase
        self._began = now
        limit = self.limit
        if limit == NEVER:
            self._share = self._left = NEVER
            return NEVER
        self._left = left = max(0.0, limit - now)
        part, floor, bounded = self.shares.plan(phase, self.route)
        share = left * part
        if share < floor:
            share = min(left, floor)
        self._share = share
        return min(limit, now + share) if bounded else limit

    def end(self, now: Instant, ended: Ended = Ended.DONE, detail: str = "") -> None:
        """The phase under way is over; nothing happens when there is none."""
        phase, self.current = self.current, None
        if phase is None:
            return
        began, steps = self._began, self.steps
        took = max(0.0, now - began)
        step = Step(phase, began - self.begun, took, self._share, self._left, ended, detail)
        if len(steps) < _MOST:
            steps.append(step)
        else:  # the last one must be there: it says how the call ended
            gone, steps[-1] = steps[-1], step
            self._gone[gone.phase] = self._gone.get(gone.phase, 0.0) + gone.took

    def tried(self, address: str, began: Instant, now: Instant, result: str) -> None:
        """An address was tried, from `began` to `now`."""
        if len(self.attempts) >= _MOST:
            del self.attempts[-1]
        self.attempts.append(Attempt(address, began - self.begun, now - began, result))

    def spent(self, now: Instant) -> bool:
        """Whether the limit of the whole is spent."""
        return self.limit <= now

    @property
    def phase(self) -> Phase | None:
        """The phase under way, or else the last one; none before the first."""
        if self.current is not None:
            return self.current
        return self.steps[-1].phase if self.steps else None

    @property
    def event(self) -> str:
        """`tcp.connect.timeout` and the like, when the last phase ended so; empty otherwise."""
        if self.current is not None or not self.steps:
            return ""
        last = self.steps[-1]
        return last.phase.event if last.ended is Ended.TIMEOUT else ""

    @property
    def took(self) -> dict[Phase, Duration]:
        """Seconds by phase, over all redirects and attempts, in the order of their beginning."""
        total: dict[Phase, Duration] = {}
        kept = [(step.phase, step.took) for step in self.steps]
        for phase, took in [*kept, *self._gone.items()]:
            total[phase] = total.get(phase, 0.0) + took
        return total

    @property
    def elapsed(self) -> Duration:
        """Seconds from the beginning of the call to the end of its last phase."""
        return self.steps[-1].began + self.steps[-1].took if self.steps else 0.0

    def brief(self) -> str:
        """How it ended, in a few words, without addresses: it may travel to other hops."""
        if not self.steps:
            return f"{self.target}: not begun"
        last = self.steps[-1]
        what = self.event or f"{last.phase.value} {last.ended.value}"
        return f"{what} at {self.target} after {format_duration(last.took)}"

    def line(self) -> str:
        """Everything in one readable line."""
        text = self.brief()
        if not self.steps:
            return text
        last = self.steps[-1]
        if last.share != NEVER:
            text += f" (share {format_duration(last.share)} of {format_duration(last.left)} left)"
        if last.detail:
            text += f", {last.detail}"
        before = self.took
        before[last.phase] -= last.took
        parts = [f"{p.value} {format_duration(s)}" for p, s in before.items() if s > 0]
        if self.sent or self.received:
            parts.append(f"{self.sent} bytes sent, {self.received} received")
        if self.interim:
            parts.append(f"last interim response {self.interim}")
        if self.redirects:
            parts.append(f"{self.redirects} redirects")
        if last.phase is Phase.CONNECT:
            parts += [f"{a.address} {a.result} {format_duration(a.took)}" for a in self.attempts]
        return text + (f"; {', '.join(parts)}" if parts else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON and for the attributes of a span; what has no limit is null."""
        last = self.steps[-1] if self.steps else None
        return {
            "target": self.target,
            "client": self.client,
            "event": self.event,
            "phase": None if last is None else last.phase.value,
            "budget_s": _finite(self.limit - self.begun),
            "elapsed_s": round(self.elapsed, 6),
            "share_s": None if last is None else _finite(last.share),
            "left_s": None if last is None else _finite(last.left),
            "detail": "" if last is None else last.detail,
            "bytes_sent": self.sent,
            "bytes_received": self.received,
            "redirects": self.redirects,
            "interim_status": self.interim,
            "phases_s": {phase.value: round(took, 6) for phase, took in self.took.items()},
            "addresses": [
                {"address": a.address, "took_s": round(a.took, 6), "result": a.result}
                for a in self.attempts
            ],
        }

    def __repr__(self) -> str:
        return f"<Trail {self.line()}>"


def _finite(seconds: Duration) -> Duration | None:
    return None if seconds == NEVER else round(seconds, 6)
