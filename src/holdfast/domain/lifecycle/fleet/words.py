"""What happens to a fleet, and what is decided about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from holdfast.domain.instant import Duration

__all__ = [
    "Decision",
    "Died",
    "Dump",
    "DumpAsked",
    "Event",
    "Exit",
    "ForceAsked",
    "Kill",
    "NotStarted",
    "Ready",
    "Report",
    "Resize",
    "Retire",
    "RollAsked",
    "Spawn",
    "Started",
    "StopAsked",
    "Tick",
]

# -- what happens ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The process for `Spawn(ticket)` exists. `patience`: seconds that it needs at most to stop."""

    ticket: int
    pid: int
    patience: Duration


@dataclass(frozen=True, slots=True)
class NotStarted:
    """There is no process for `Spawn(ticket)`, and `why`."""

    ticket: int
    why: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker accepts connections."""

    pid: int


@dataclass(frozen=True, slots=True)
class Died:
    """A process is gone. `code`: its exit code, -N for signal N, None when it cannot be known."""

    pid: int
    code: int | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; see `wake`."""


@dataclass(frozen=True, slots=True)
class RollAsked:
    """Everybody is to be replaced by a new generation, whose number is `FleetState.latest`."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The fleet is to stop, and `why`."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class ForceAsked:
    """Somebody cannot wait, and `why`."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class DumpAsked:
    """Everybody is to write their stacks and end at once."""


@dataclass(frozen=True, slots=True)
class Resize:
    """So many more workers are wanted, or fewer; one stays."""

    by: int


Event: TypeAlias = (
    Started
    | NotStarted
    | Ready
    | Died
    | Tick
    | RollAsked
    | StopAsked
    | ForceAsked
    | DumpAsked
    | Resize
)


# -- what is decided -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process, and answer with `Started` or `NotStarted`."""

    ticket: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Tell a worker to stop.

    Attributes:
        pid: which one.
        seconds: how long it may take.
        final: whether nobody else serves what waits in the accept queue.
        force: whether it is to cut what it serves.
    """

    pid: int
    seconds: Duration
    final: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """End a process now."""

    pid: int


@dataclass(frozen=True, slots=True)
class Dump:
    """Have a process write its stacks and end."""

    pid: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell people; `kind` and `detail` are of a record, `code` is of a process that is gone."""

    kind: str
    pid: int = 0
    slot: int = -1
    generation: int = 0
    detail: str = ""
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """Nobody is left: end with this code."""

    code: int


Decision: TypeAlias = Spawn | Retire | Kill | Dump | Report | Exit
