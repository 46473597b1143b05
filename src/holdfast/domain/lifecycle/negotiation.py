"""Exit negotiation: components are asked to prepare for the stop, and answer.

Rule 1. Who needs others is asked before them: the waves of the start, backwards. A wave is asked
        when everybody in the wave before has answered, or is forced.
Rule 2. An answer is due within `patience` of the question, and never later than the whole
        negotiation. No answer reaches beyond the time of the stop.
Rule 3. Who answers with an error, or not at all, is named and forced.
Rule 4. Who has not been asked when the time is over is named and forced as well.
Rule 5. A stop that is forced ends the negotiation.
Rule 6. One answer counts, the first. What comes after it, or after the time, changes nothing.

A machine (see `domain.machine`): the driver asks, reports the answers, and looks in again when it
was told to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

from holdfast.domain.cause import Cause
from holdfast.domain.instant import NEVER, Duration, Instant

__all__ = [
    "Acknowledged",
    "Ask",
    "Decision",
    "Event",
    "Failed",
    "Forced",
    "GivenUp",
    "LookAt",
    "Looked",
    "Negotiation",
    "Over",
    "ShutdownRequest",
    "Standing",
    "Talks",
]


@dataclass(frozen=True, slots=True)
class ShutdownRequest:
    """What a component is told when it is asked to prepare for the stop.

    Attributes:
        name: of the component.
        deadline: monotonic instant at which work that is still under way will be cut: the one that
            `stop` will be given as well.
        cause: why the process stops.
        answer_by: monotonic instant by which it has to answer; never later than `deadline`.
    """

    name: str
    deadline: Instant
    cause: Cause
    answer_by: Instant = NEVER


# -- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The component is prepared (ACK_SHUTDOWN)."""

    name: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The component answered with an error."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Looked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The stop is forced: nobody is waited for any more."""


Event: TypeAlias = Acknowledged | Failed | Looked | GivenUp


# -- decisions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a component; its answer is due at `deadline`."""

    name: str
    deadline: Instant


@dataclass(frozen=True, slots=True)
class LookAt:
    """Say that time has passed, at `at`."""

    at: Instant


@dataclass(frozen=True, slots=True)
class Forced:
    """Stop waiting for a component; `why` in one line. `asked` is false when time was over."""

    name: str
    why: str
    asked: bool = True


@dataclass(frozen=True, slots=True)
class Over:
    """Everybody has answered, or is forced."""

    forced: tuple[str, ...]


Decision: TypeAlias = Ask | LookAt | Forced | Over


# -- the machine -----------------------------------------------------------------------------------


class Standing(StrEnum):
    """How it stands with one component."""

    WAITING = "waiting"
    """It is not its turn yet."""
    ASKED = "asked"
    ACKNOWLEDGED = "acknowledged"
    FORCED = "forced"


_NOBODY: Final[Mapping[str, Standing]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Talks:
    """The state.

    Attributes:
        waves: who is asked together, first to last.
        until: instant at which the negotiation is over, whatever was answered.
        turn: index of the wave that is asked now.
        due: instant at which the answers of that wave are due.
        standing: of each component.
    """

    waves: tuple[tuple[str, ...], ...] = ()
    until: Instant = 0.0
    turn: int = -1
    due: Instant = 0.0
    standing: Mapping[str, Standing] = field(default_factory=lambda: _NOBODY)

    @property
    def over(self) -> bool:
        """Whether nobody is left to wait for."""
        return self.turn >= len(self.waves)

    @property
    def forced(self) -> tuple[str, ...]:
        """Who did not acknowledge, in the order in which they were to be asked."""
        names = (name for wave in self.waves for name in wave)
        return tuple(name for name in names if self.standing[name] is Standing.FORCED)


_Answer: TypeAlias = tuple[Talks, Sequence[Decision]]


@dataclass(frozen=True, slots=True)
class Negotiation:
    """The machine.

    Attributes:
        patience: seconds that a wave has to answer.
    """

    patience: Duration = 1.0

    def __post_init__(self) -> None:
        if not self.patience >= 0:
            raise ValueError(f"patience must be zero or more seconds, got {self.patience}")

    def begin(self, waves: Sequence[Sequence[str]], until: Instant, now: Instant) -> _Answer:
        """Ask the first wave. `waves` are those of the stop: who needs others comes first."""
        fixed = tuple(tuple(wave) for wave in waves if wave)
        standing = {name: Standing.WAITING for wave in fixed for name in wave}
        return self._go_on(Talks(fixed, until, standing=standing), now, [])

    def step(self, state: Talks, event: Event, now: Instant) -> _Answer:
        """See `Machine`."""
        if state.over:
            return state, ()
        done: list[Decision] = []
        if isinstance(event, GivenUp):
            state = replace(state, until=min(state.until, now), due=min(state.due, now))
        elif not isinstance(event, Looked) and self._may_answer(state, event.name, now):
            if isinstance(event, Acknowledged):
                state = _with(state, event.name, Standing.ACKNOWLEDGED)
            else:
                state = _with(state, event.name, Standing.FORCED)
                done.append(Forced(event.name, f"failed: {event.why}"))
        return self._go_on(state, now, done)

    def _may_answer(self, state: Talks, name: str, now: Instant) -> bool:
        return state.standing.get(name) is Standing.ASKED and now <= state.due

    def _go_on(self, state: Talks, now: Instant, done: list[Decision]) -> _Answer:
        if state.turn >= 0 and state.due <= now:
            for name in state.waves[state.turn]:
                if state.standing[name] is Standing.ASKED:
                    state = _with(state, name, Standing.FORCED)
                    done.append(Forced(name, "did not answer in time"))
        while not state.over and not _waits(state):
            state = replace(state, turn=state.turn + 1)
            if state.over:
                done.append(Over(state.forced))
            elif state.until <= now:
                state = _leave_out(state, done)
            else:
                state = self._ask(state, now, done)
        return state, done

    def _ask(self, state: Talks, now: Instant, done: list[Decision]) -> Talks:
        due = min(now + self.patience, state.until)
        standing = dict(state.standing)
        for name in state.waves[state.turn]:
            standing[name] = Standing.ASKED
            done.append(Ask(name, due))
        done.append(LookAt(due))
        return replace(state, due=due, standing=standing)


def _leave_out(state: Talks, done: list[Decision]) -> Talks:
    standing = dict(state.standing)
    for name in state.waves[state.turn]:
        standing[name] = Standing.FORCED
        done.append(Forced(name, "no time was left to ask", asked=False))
    return replace(state, standing=standing)


def _waits(state: Talks) -> bool:
    if state.turn < 0:
        return False
    wave = state.waves[state.turn]
    return any(state.standing[name] is Standing.ASKED for name in wave)


def _with(state: Talks, name: str, standing: Standing) -> Talks:
    return replace(state, standing={**state.standing, name: standing})
