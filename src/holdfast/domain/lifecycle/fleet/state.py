"""What a fleet remembers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from holdfast.domain.instant import NEVER, Duration, Instant

__all__ = [
    "CLEAN",
    "DUMPED",
    "FAILED_TO_START",
    "FORCED",
    "SERVING",
    "TIMED_OUT",
    "UNUSABLE",
    "WORKER_DIED",
    "FleetState",
    "FleetTerms",
    "Mode",
    "Slot",
    "Stage",
    "Worker",
    "opening",
    "wake",
]

CLEAN: Final = 0
UNUSABLE: Final = 2
FAILED_TO_START: Final = 3
TIMED_OUT: Final = 4
FORCED: Final = 5
WORKER_DIED: Final = 6
DUMPED: Final = 131
"""Exit codes, the same as those of a single process; 131 is 128 + SIGQUIT."""


class Mode(StrEnum):
    """Where the fleet is. Strictly forward."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    GONE = "gone"


class Stage(StrEnum):
    """Where a worker is. Strictly forward."""

    SPAWNING = "spawning"
    STARTING = "starting"
    READY = "ready"
    RETIRING = "retiring"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class FleetTerms:
    """The times of a fleet, in seconds.

    Attributes:
        start: a worker is ready so long after it was started, or killed.
        well: a worker that was ready for so long has run well.
        first: the pause before a worker that did not run well is replaced; doubled each time.
        most: the longest pause.
        force: what a worker has when it is told to cut what it serves.
        reap: what the kernel has to end a process that was killed.
    """

    start: Duration = 60.0
    well: Duration = 10.0
    first: Duration = 0.25
    most: Duration = 30.0
    force: Duration = 2.0
    reap: Duration = 5.0


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one worker.

    Attributes:
        number: which one.
        generation: that was last ready in it, or is to be the first.
        failures: how often in a row a worker of it did not run well.
        again: instant from which it may be filled.
    """

    number: int
    generation: int
    failures: int = 0
    again: Instant = -NEVER


@dataclass(frozen=True, slots=True)
class Worker:
    """One process.

    Attributes:
        ticket: which one, before it has a `pid` and after.
        slot: its place; -1 when it has none any more.
        generation: the settings that it was started with.
        stage: where it is.
        pid: of the process; 0 while it is spawning.
        since: instant at which the stage began.
        due: instant at which patience with the stage ends.
        patience: seconds that it needs at most to stop.
        served: whether it has ever been ready.
    """

    ticket: int
    slot: int
    generation: int
    stage: Stage
    pid: int = 0
    since: Instant = 0.0
    due: Instant = NEVER
    patience: Duration = 0.0
    served: bool = False


@dataclass(frozen=True, slots=True)
class FleetState:
    """All that a fleet remembers.

    Attributes:
        terms: its times.
        slots: one for each worker that is wanted.
        workers: every process that is there or is being started.
        mode: where the fleet is.
        latest: the newest generation that was asked for.
        target: the generation that a roll puts in; None when there is no roll.
        ticket: the last one given.
        code: the exit code so far.
        forced: whether the stop is by force.
    """

    terms: FleetTerms
    slots: tuple[Slot, ...]
    workers: tuple[Worker, ...] = ()
    mode: Mode = Mode.STARTING
    latest: int = 0
    target: int | None = None
    ticket: int = 0
    code: int = CLEAN
    forced: bool = False


def opening(wanted: int, terms: FleetTerms | None = None) -> FleetState:
    """The state of a fleet before its first event, which is a `Tick`."""
    slots = tuple(Slot(number, 0) for number in range(max(1, wanted)))
    return FleetState(terms or FleetTerms(), slots)


SERVING: Final = (Stage.SPAWNING, Stage.STARTING, Stage.READY)
"""The stages in which a worker fills its slot."""


def wake(state: FleetState) -> Instant:
    """The instant of the next `Tick` that changes something; infinite when only events do."""
    due = min((worker.due for worker in state.workers), default=NEVER)
    if state.mode is not Mode.RUNNING:
        return due
    filled = {worker.slot for worker in state.workers if worker.stage in SERVING}
    again = (slot.again for slot in state.slots if slot.number not in filled)
    return min(due, min(again, default=NEVER))
