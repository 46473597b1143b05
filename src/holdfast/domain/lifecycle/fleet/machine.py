"""The machine; its rules are in the docstring of the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.lifecycle.fleet.state import (
    CLEAN,
    DUMPED,
    FAILED_TO_START,
    FORCED,
    SERVING,
    TIMED_OUT,
    UNUSABLE,
    WORKER_DIED,
    FleetState,
    Mode,
    Slot,
    Stage,
    Worker,
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

__all__ = ["Fleet"]

_SIGNALS: Final = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    15: "SIGTERM",
}
_MOST_DOUBLINGS: Final = 32


class Fleet:
    """See the package."""

    def step(
        self, state: FleetState, event: Event, now: Instant
    ) -> tuple[FleetState, Sequence[Decision]]:
        """The next state, and what the supervisor must do, in this order."""
        if state.mode is Mode.GONE:
            return state, ()
        turn = _Turn(state, now)
        match event:
            case Started():
                turn.started(event)
            case NotStarted(ticket, why):
                turn.lost(turn.of_ticket(ticket), None, why)
            case Ready(pid):
                turn.ready(turn.of_pid(pid))
            case Died(pid, code):
                turn.lost(turn.of_pid(pid), code, _how(code))
            case RollAsked():
                turn.ask_roll()
            case StopAsked(why):
                turn.stop(why, CLEAN)
            case ForceAsked(why):
                turn.force(why)
            case DumpAsked():
                turn.dump()
            case Resize(by):
                turn.resize(by)
            case Tick():
                pass
        turn.settle()
        return turn.state, turn.decided


class _Turn:
    """One step: the event changes what is known, `settle` does what follows from it."""

    def __init__(self, state: FleetState, now: Instant) -> None:
        self.state = state
        self.now = now
        self.decided: list[Decision] = []

    # -- looking up and writing down -------------------------------------------------------------

    def of_ticket(self, ticket: int) -> Worker | None:
        return next((w for w in self.state.workers if w.ticket == ticket), None)

    def of_pid(self, pid: int) -> Worker | None:
        return next((w for w in self.state.workers if w.pid == pid != 0), None)

    def _of_slot(self, number: int) -> list[Worker]:
        return [w for w in self.state.workers if w.slot == number and w.stage in SERVING]

    def _put(self, worker: Worker) -> None:
        others = (worker if w.ticket == worker.ticket else w for w in self.state.workers)
        self.state = replace(self.state, workers=tuple(others))

    def _drop(self, worker: Worker) -> None:
        left = tuple(w for w in self.state.workers if w.ticket != worker.ticket)
        self.state = replace(self.state, workers=left)

    def _put_slot(self, slot: Slot) -> None:
        slots = (slot if s.number == slot.number else s for s in self.state.slots)
        self.state = replace(self.state, slots=tuple(slots))

    def _slot_of(self, worker: Worker) -> Slot:
        """The place of a worker that is not told to go; it has one."""
        return next(slot for slot in self.state.slots if slot.number == worker.slot)

    def _worst(self, code: int) -> None:
        self.state = replace(self.state, code=max(self.state.code, code))

    def _report(self, kind: str, worker: Worker, detail: str = "", code: int | None = None) -> None:
        self.decided.append(Report(kind, worker.pid, worker.slot, worker.generation, detail, code))

    def _newcomer(self, worker: Worker) -> bool:
        """Whether it is to replace one of another generation."""
        return self._slot_of(worker).generation != worker.generation

    # -- workers come and go ---------------------------------------------------------------------

    def _spawn(self, slot: Slot, generation: int) -> None:
        ticket = self.state.ticket + 1
        worker = Worker(ticket, slot.number, generation, Stage.SPAWNING, since=self.now)
        self.state = replace(self.state, ticket=ticket, workers=(*self.state.workers, worker))
        self.decided.append(Spawn(ticket, slot.number, generation))

    def started(self, event: Started) -> None:
        worker = self.of_ticket(event.ticket)
        if worker is None:
            self.decided.append(Kill(event.pid))  # nobody would look after it
        if worker is None or worker.pid:
            return
        worker = replace(worker, pid=event.pid, patience=event.patience)
        if worker.stage is not Stage.SPAWNING:  # not wanted any more
            self._put(worker)
            if self.state.forced or self.state.code == DUMPED:
                self._kill(worker)
            else:
                self._retire(worker, final=self.state.mode is Mode.STOPPING)
            return
        due = self.now + self.state.terms.start
        self._put(replace(worker, stage=Stage.STARTING, since=self.now, due=due))
        self._report("worker.started", worker)

    def ready(self, worker: Worker | None) -> None:
        if worker is not None and worker.stage is Stage.RETIRING:
            self._put(replace(worker, served=True))  # it was told to go meanwhile
        if worker is None or worker.stage is not Stage.STARTING:
            return
        self._report("worker.ready", worker, f"after {format_duration(self.now - worker.since)}")
        self._put(replace(worker, stage=Stage.READY, since=self.now, due=NEVER, served=True))
        if self.state.mode is Mode.STARTING:
            self.state = replace(self.state, mode=Mode.RUNNING)
        slot = self._slot_of(worker)
        self._put_slot(replace(slot, generation=worker.generation))
        for old in self._of_slot(slot.number):
            if old.ticket != worker.ticket:
                self._retire(old, final=False)

    def lost(self, worker: Worker | None, code: int | None, how: str) -> None:
        if worker is None:
            return
        self._drop(worker)
        lasted = f"{how} after {format_duration(self.now - worker.since)}"
        if worker.stage in (Stage.RETIRING, Stage.KILLED):
            if self.state.mode is Mode.STOPPING:
                self._worst(_end_of(worker, code))
            went = worker.stage is Stage.RETIRING and code is not None and code >= 0
            self._report("worker.retired" if went else "worker.died", worker, lasted, code)
        elif worker.stage is Stage.READY:
            ran = self.now - worker.since
            self._report("worker.died", worker, f"{lasted}; {self._penalty(worker, ran)}", code)
        else:
            self._not_ready(worker, lasted, code)

    def _not_ready(self, worker: Worker, how: str, code: int | None) -> None:
        """A worker was lost before it was ready."""
        if self.state.mode is Mode.STARTING:
            self._report("component.failed", worker, f"the first worker did not start: {how}")
            self.stop("failed to start", UNUSABLE if code == UNUSABLE else FAILED_TO_START)
            return
        # One that is there still was killed; its death is told when it comes.
        kind = "worker.died" if self.of_ticket(worker.ticket) is None else "component.forced"
        if not self._newcomer(worker):
            self._report(kind, worker, f"{how}; {self._penalty(worker, 0.0)}", code)
            return
        self._report(kind, worker, how, code)
        if worker.generation == self.state.target:
            self.state = replace(self.state, target=None)
            what = "the roll is given up, the old workers stay: the new one did not get ready"
            self._report("config.refused", worker, f"{what}: {how}")

    def _penalty(self, worker: Worker, ran: Duration) -> str:
        """Note when its slot may be filled again; in words."""
        slot = self._slot_of(worker)
        terms = self.state.terms
        if ran >= terms.well:
            self._put_slot(replace(slot, failures=0))
            return "another one starts at once"
        pause = min(terms.most, terms.first * 2.0 ** min(slot.failures, _MOST_DOUBLINGS))
        self._put_slot(replace(slot, failures=slot.failures + 1, again=self.now + pause))
        return f"another one starts in {format_duration(pause)}"

    def _retire(self, worker: Worker, *, final: bool) -> None:
        retiring = replace(worker, stage=Stage.RETIRING, since=self.now)
        if worker.pid:
            retiring = replace(retiring, due=self.now + worker.patience)
            self.decided.append(Retire(worker.pid, worker.patience, final))
            self._report("shutdown.requested", worker)
        self._put(retiring)

    def _kill(self, worker: Worker) -> None:
        due = self.now + self.state.terms.reap
        self._put(replace(worker, stage=Stage.KILLED, since=self.now, due=due))
        self.decided.append(Kill(worker.pid))

    # -- what people ask for ---------------------------------------------------------------------

    def ask_roll(self) -> None:
        if self.state.mode is not Mode.STOPPING:
            latest = self.state.latest + 1
            self.state = replace(self.state, latest=latest, target=latest)

    def stop(self, why: str, code: int) -> None:
        if self.state.mode is Mode.STOPPING:
            return
        self.state = replace(self.state, mode=Mode.STOPPING, target=None, code=code)
        self.decided.append(Report("stop.begun", detail=why))
        for worker in self._in(SERVING):
            self._retire(worker, final=True)
        for worker in self._in((Stage.KILLED,)):  # now there is a reason to wait for them
            self._put(replace(worker, due=self.now + self.state.terms.reap))

    def force(self, why: str) -> None:
        self.stop(why, CLEAN)
        again, self.state = self.state.forced, replace(self.state, forced=True)
        seconds = self.state.terms.force
        for worker in self._in((Stage.RETIRING,)):
            self._worst(FORCED)
            if not worker.pid:
                continue
            if again:
                self._report("component.forced", worker, f"killed: {why}")
                self._kill(worker)
                continue
            self._put(replace(worker, due=min(worker.due, self.now + seconds)))
            self.decided.append(Retire(worker.pid, seconds, final=True, force=True))
            self._report("component.forced", worker, f"told to cut what it serves: {why}")

    def dump(self) -> None:
        self.stop("stacks were asked for", CLEAN)
        self._worst(DUMPED)
        for worker in self._in((Stage.RETIRING,)):
            if worker.pid:
                self._put(replace(worker, due=self.now + self.state.terms.force))
                self.decided.append(Dump(worker.pid))

    def resize(self, by: int) -> None:
        if self.state.mode is Mode.STOPPING:
            return
        slots = self.state.slots
        newest = max(slot.generation for slot in slots)
        for _ in range(by):
            number = slots[-1].number + 1
            slots = (*slots, Slot(number, newest))
        left = slots[: max(1, len(slots) + by)] if by < 0 else slots
        self.state = replace(self.state, slots=left)
        for gone in slots[len(left) :]:
            for worker in self._of_slot(gone.number):
                self._retire(replace(worker, slot=-1), final=False)

    def _in(self, stages: Iterable[Stage]) -> list[Worker]:
        return [worker for worker in self.state.workers if worker.stage in stages]

    # -- what follows ----------------------------------------------------------------------------

    def settle(self) -> None:
        for worker in self.state.workers:
            if worker.due <= self.now:
                self._overdue(worker)
        if self.state.mode is Mode.STOPPING:
            if not self.state.workers:
                self.state = replace(self.state, mode=Mode.GONE)
                self.decided.append(Exit(self.state.code))
            return
        if self.state.mode is Mode.STARTING:
            if not self._in(SERVING):
                self._spawn(self.state.slots[0], self.state.slots[0].generation)
            return
        if self.state.target is not None:
            self._roll(self.state.target)
        for slot in self.state.slots:
            if slot.again <= self.now and not self._of_slot(slot.number):
                self._spawn(slot, slot.generation)

    def _overdue(self, worker: Worker) -> None:
        waited = format_duration(self.now - worker.since)
        match worker.stage:
            case Stage.STARTING:
                self._kill(worker)
                self._not_ready(worker, f"not ready after {waited}, killed", None)
            case Stage.RETIRING:
                if worker.served:  # before a stop the code counts for nothing
                    self._worst(TIMED_OUT)
                self._report("component.forced", worker, f"killed: not gone after {waited}")
                self._kill(worker)
            case Stage.KILLED if self.state.mode is Mode.STOPPING:
                self._worst(TIMED_OUT if worker.served else CLEAN)
                self._report("component.forced", worker, "left behind: the kernel does not end it")
                self._drop(worker)
            case _:
                self._put(replace(worker, due=NEVER))

    def _roll(self, target: int) -> None:
        starting = self._in((Stage.SPAWNING, Stage.STARTING))
        if any(self._newcomer(worker) for worker in starting):
            return
        old = [slot for slot in self.state.slots if slot.generation != target]
        filled = {slot.number: self._of_slot(slot.number) for slot in old}
        for slot in old:
            if not filled[slot.number]:
                self._spawn(slot, target)
                return
        if self._in((Stage.RETIRING,)):
            return
        for slot in old:
            if all(worker.stage is Stage.READY for worker in filled[slot.number]):
                self._spawn(slot, target)
                return
        if not old:
            self.state = replace(self.state, target=None)
            self.decided.append(
                Report("config.reloaded", generation=target, detail="every worker is a new one")
            )


def _end_of(worker: Worker, code: int | None) -> int:
    """What the end of a worker that was told to go adds to the exit code."""
    if worker.stage is Stage.KILLED or not worker.served:
        return CLEAN  # what was done to it is noted already; and without service nothing was lost
    return code if code in (CLEAN, FAILED_TO_START, TIMED_OUT, FORCED) else WORKER_DIED


def _how(code: int | None) -> str:
    if code is None:
        return "gone, nobody knows how"
    if code < 0:
        return f"killed by {_SIGNALS.get(-code, f'signal {-code}')}"
    return f"ended with exit code {code}"
