"""The life of a process: five phases, strictly forward.

    phase         entered when                     left when
    initializing  the host starts                  all components are up; or one cannot start, or
                                                   somebody asks to stop, or one that is up dies
    running       all components are up: ready     somebody asks to stop, or a component dies
    terminating   the stop has begun: not ready    everybody was told and asked (or forced)
    draining      work ends, nothing new is taken  work and clean-up are over, or were given up
    stopped       nothing is left                  never

Rule 1. Forward only, and never past a phase: whatever ends the process goes through all that are
        left, so that what has started is stopped in one way.
Rule 2. Ready in `running` only. It becomes unready in the step that begins the stop.
Rule 3. The first cause wins. What happens later is noted by the driver, and changes neither cause
        nor, where the process was not told to stop, the exit code.
Rule 4. The time of a stop is shared out when it begins: work has until the drain deadline, and
        clean-up has its reserve behind that. Nothing later moves either of them outwards.
Rule 5. Asked again while it stops is force. The first force cuts what is under way and leaves
        clean-up a moment. Force during clean-up, be it the first or another, gives that up at once.
Rule 6. The exit code says why the process ended, where nobody told it to; else how the stop went.

A machine (see `domain.machine`): it decides, the host performs and reports back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import TypeAlias

from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.tree import Outcome

__all__ = [
    "Abandon",
    "CleanUp",
    "CleanedUp",
    "CutNow",
    "Decision",
    "Died",
    "Drain",
    "Drained",
    "Entered",
    "Event",
    "Exit",
    "ExitCode",
    "GiveUpStart",
    "Life",
    "Lifecycle",
    "LimitPassed",
    "Negotiate",
    "Negotiated",
    "Phase",
    "SetReady",
    "StartFailed",
    "Started",
    "StopAsked",
    "TellStop",
]


class Phase(StrEnum):
    """Where a process is in its life."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    TERMINATING = "terminating"
    DRAINING = "draining"
    STOPPED = "stopped"

    @property
    def stopping(self) -> bool:
        """Whether the stop has begun, or is over."""
        return self in (Phase.TERMINATING, Phase.DRAINING, Phase.STOPPED)


class ExitCode(IntEnum):
    """What the process tells whoever started it. 1 and 2 are for programs, 128 on for signals."""

    CLEAN = 0
    """Told to stop, and everything ended by itself."""
    FAILED_TO_START = 3
    """A component could not start, or died before all were up."""
    TIMED_OUT = 4
    """Told to stop, and something was still under way when its time was over."""
    FORCED = 5
    """Told to stop, and told again before that was done."""
    COMPONENT_DIED = 6
    """A component ended by itself."""


_OUTCOMES = {
    ExitCode.CLEAN: Outcome.DONE,
    ExitCode.FAILED_TO_START: Outcome.FAILED,
    ExitCode.TIMED_OUT: Outcome.EXPIRED,
    ExitCode.FORCED: Outcome.CANCELLED,
    ExitCode.COMPONENT_DIED: Outcome.FAILED,
}


# -- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """All components are up."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A component could not start, for the reason `why`."""

    component: str
    why: str


@dataclass(frozen=True, slots=True)
class Died:
    """A component that was up ended by itself, for the reason `why`."""

    component: str
    why: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """`by` asks the process to stop: a signal, an operator, the program itself."""

    by: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """Everybody was told and asked; who did not answer is named and will be forced."""


@dataclass(frozen=True, slots=True)
class LimitPassed:
    """The drain deadline is over, and something is still under way."""


@dataclass(frozen=True, slots=True)
class Drained:
    """No work is left; `cut` pieces of it did not end by themselves."""

    cut: int = 0


@dataclass(frozen=True, slots=True)
class CleanedUp:
    """Clean-up is over; `late` parts of it were given up."""

    late: int = 0


Event: TypeAlias = (
    Started | StartFailed | Died | StopAsked | Negotiated | LimitPassed | Drained | CleanedUp
)


# -- decisions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entered:
    """A phase began, at an instant, for a cause in one line. One record is written of each."""

    phase: Phase
    at: Instant
    cause: str


@dataclass(frozen=True, slots=True)
class SetReady:
    """Say from now on that the process is ready, or that it is not."""

    ready: bool


@dataclass(frozen=True, slots=True)
class GiveUpStart:
    """Components that are not up yet need not come up any more."""


@dataclass(frozen=True, slots=True)
class TellStop:
    """Bound the process (work by `until`, all of it by `end`), and tell the program."""

    until: Instant
    end: Instant


@dataclass(frozen=True, slots=True)
class Negotiate:
    """Ask the components to prepare for the stop, by `until` at the latest."""

    until: Instant


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new, and let what is under way end by `until`."""

    until: Instant


@dataclass(frozen=True, slots=True)
class CutNow:
    """Cancel what is still under way, everywhere. All has to be over by `end`."""

    end: Instant


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Run the hooks and stop what is left, by `until`."""

    until: Instant


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up what is left of the clean-up, by name."""


@dataclass(frozen=True, slots=True)
class Exit:
    """Close the scope of the process with `outcome`, and end with `code`."""

    code: ExitCode
    outcome: Outcome


Decision: TypeAlias = (
    Entered
    | SetReady
    | GiveUpStart
    | TellStop
    | Negotiate
    | Drain
    | CutNow
    | CleanUp
    | Abandon
    | Exit
)


# -- the machine -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Life:
    """The state.

    Attributes:
        phase: where the process is.
        entered_at: instant at which that phase began.
        cause: why the stop began, in one line; empty before it does.
        until: the drain deadline; infinite before the stop begins.
        end: instant at which clean-up has to be over as well.
        why: the exit code that the cause asks for; `CLEAN` when the process was told to stop.
        cutting: whether work was cut, by force or by the deadline.
        forced: whether it was told again.
        late: whether anything did not end by itself.
        cleaning: whether work is over and clean-up is under way.
        abandoned: whether clean-up was given up.
    """

    phase: Phase = Phase.INITIALIZING
    entered_at: Instant = 0.0
    cause: str = ""
    until: Instant = NEVER
    end: Instant = NEVER
    why: ExitCode = ExitCode.CLEAN
    cutting: bool = False
    forced: bool = False
    late: bool = False
    cleaning: bool = False
    abandoned: bool = False

    @property
    def brief(self) -> str:
        """The cause without who sent it and what went wrong inside: what anybody may be told."""
        if self.cause.startswith("component '"):
            return self.cause.partition(": ")[0]
        return self.cause.partition(" from ")[0].removesuffix(":")

    @property
    def code(self) -> ExitCode:
        """The exit code, as far as it is known by now."""
        if self.why is not ExitCode.CLEAN:
            return self.why
        if self.forced:
            return ExitCode.FORCED
        return ExitCode.TIMED_OUT if self.late else ExitCode.CLEAN


_Answer: TypeAlias = tuple[Life, Sequence[Decision]]


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The machine, with the times of a stop in seconds.

    Attributes:
        drain: from the beginning of a stop until work is cut.
        cleanup: the reserve behind that for hooks and for what is stopped after the work.
        hurried: what a forced stop leaves of that reserve.
    """

    drain: Duration = 30.0
    cleanup: Duration = 5.0
    hurried: Duration = 1.0

    def __post_init__(self) -> None:
        for name in ("drain", "cleanup", "hurried"):
            value: float = getattr(self, name)
            if not 0 <= value < NEVER:
                raise ValueError(f"{name} must be zero or more seconds and finite, got {value}")

    def begin(self, now: Instant) -> _Answer:
        """The first state; nothing is up."""
        life = Life(entered_at=now)
        return life, (Entered(life.phase, now, ""), SetReady(False))

    def step(self, state: Life, event: Event, now: Instant) -> _Answer:
        """See `Machine`. An event that means nothing in a phase changes nothing."""
        match event, state.phase:
            case Started(), Phase.INITIALIZING:
                return self._enter(
                    state, Phase.RUNNING, now, "all components are up", SetReady(True)
                )
            case StartFailed(component, why), Phase.INITIALIZING:
                cause = f"component '{component}' cannot start: {why}"
                return self._stop(state, now, cause, ExitCode.FAILED_TO_START)
            case Died(component, why), Phase.INITIALIZING:
                cause = f"component '{component}' died while others started: {why}"
                return self._stop(state, now, cause, ExitCode.FAILED_TO_START)
            case Died(component, why), Phase.RUNNING:
                cause = f"component '{component}' died: {why}"
                return self._stop(state, now, cause, ExitCode.COMPONENT_DIED)
            case StopAsked(by, detail), Phase.INITIALIZING | Phase.RUNNING:
                cause = f"{by}: {detail}" if detail else by
                return self._stop(state, now, cause, ExitCode.CLEAN)
            case StopAsked(), Phase.TERMINATING | Phase.DRAINING:
                return self._force(state, now)
            case LimitPassed(), Phase.TERMINATING | Phase.DRAINING:
                return self._limit_passed(state)
            case Negotiated(), Phase.TERMINATING:
                cause = "everybody was asked"
                return self._enter(state, Phase.DRAINING, now, cause, Drain(state.until))
            case Drained(cut), Phase.DRAINING if not state.cleaning:
                return self._clean_up(state, cut, now)
            case CleanedUp(late), Phase.DRAINING if state.cleaning:
                return self._end(state, late, now)
            case _:
                return state, ()

    def _enter(
        self, state: Life, phase: Phase, now: Instant, cause: str, *decisions: Decision
    ) -> _Answer:
        return replace(state, phase=phase, entered_at=now), (Entered(phase, now, cause), *decisions)

    def _stop(self, state: Life, now: Instant, cause: str, why: ExitCode) -> _Answer:
        until = now + self.drain
        end = until + self.cleanup
        starting = state.phase is Phase.INITIALIZING
        state = replace(state, cause=cause, until=until, end=end, why=why)
        give_up: tuple[Decision, ...] = (GiveUpStart(),) if starting else ()
        steps = (SetReady(False), *give_up, TellStop(until, end), Negotiate(until))
        return self._enter(state, Phase.TERMINATING, now, cause, *steps)

    def _force(self, state: Life, now: Instant) -> _Answer:
        if state.cleaning:
            if state.abandoned:
                return state, ()
            return replace(state, forced=True, late=True, abandoned=True), (Abandon(),)
        if state.forced:
            return state, ()
        until = min(state.until, now)
        end = min(state.end, now + min(self.hurried, self.cleanup))
        state = replace(state, forced=True, late=True, cutting=True, until=until, end=end)
        return state, (CutNow(end),)

    def _limit_passed(self, state: Life) -> _Answer:
        if state.cutting or state.cleaning:
            return state, ()
        return replace(state, cutting=True, late=True), (CutNow(state.end),)

    def _clean_up(self, state: Life, cut: int, now: Instant) -> _Answer:
        late = state.late or cut > 0
        until = min(state.end, now + self.cleanup)
        return replace(state, cleaning=True, late=late), (CleanUp(until),)

    def _end(self, state: Life, late: int, now: Instant) -> _Answer:
        state = replace(state, late=state.late or late > 0)
        ending = Exit(state.code, _OUTCOMES[state.code])
        return self._enter(state, Phase.STOPPED, now, state.cause, ending)
