"""Which workers a supervisor starts, keeps, replaces and ends.

Rule 1. There are as many slots as workers are wanted, and each slot is to have one worker.
Rule 2. The first worker starts alone. When it cannot start, neither can the others: the fleet has
        failed to start, and says so once.
Rule 3. A worker that died is replaced. At once when it had run well; else after a pause that
        doubles each time, so that a crash loop does not burn the machine.
Rule 4. A roll puts a new generation in the place of the old one, slot after slot: the new worker
        is ready before the old one is told to go, and the next slot begins when that one is gone.
        Empty slots come first, since they have nothing to lose.
Rule 5. A new worker that does not get ready in time, or dies, is the end of the roll. Every slot
        keeps the generation that was last ready in it.
Rule 6. Whoever is told to go has its own time for it, and is killed after that.
Rule 7. A stop ends the roll and tells everybody. Asked for by force, workers have a moment to cut
        what they serve; asked once more, they are killed. What was cut is named.
Rule 8. The fleet ends when nobody is left, with the worst that happened since the stop began.

A machine: it decides, the supervisor performs. Every event is safe in every state.
"""

from __future__ import annotations

from holdfast.domain.lifecycle.fleet.machine import Fleet
from holdfast.domain.lifecycle.fleet.state import (
    FleetState,
    FleetTerms,
    Mode,
    Slot,
    Stage,
    Worker,
    opening,
    wake,
)
from holdfast.domain.lifecycle.fleet.words import (
    Decision,
    Died,
    Dump,
    DumpAsked,
    Event,
    Exit,
    ForceAsked,
    Kill,
    NotStarted,
    Ready,
    Report,
    Resize,
    Retire,
    RollAsked,
    Spawn,
    Started,
    StopAsked,
    Tick,
)

__all__ = [
    "Decision",
    "Died",
    "Dump",
    "DumpAsked",
    "Event",
    "Exit",
    "Fleet",
    "FleetState",
    "FleetTerms",
    "ForceAsked",
    "Kill",
    "Mode",
    "NotStarted",
    "Ready",
    "Report",
    "Resize",
    "Retire",
    "RollAsked",
    "Slot",
    "Spawn",
    "Stage",
    "Started",
    "StopAsked",
    "Tick",
    "Worker",
    "opening",
    "wake",
]
