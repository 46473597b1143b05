"""The supervisor of `holdfast serve --workers N`: performs what `domain.lifecycle.fleet` decides.

It owns the listening socket and serves nothing itself. Each worker is a fresh interpreter that
inherits the socket; what they tell each other is in `workerlink`.

    TERM, INT   stop; again: force; once more: kill
    HUP         read the policy again, and replace the workers; or stop with the terminal
    QUIT        stacks of the workers and of this process, and the end; or stop, by the policy
    USR1        stacks of the workers and of this process
    TTIN, TTOU  one worker more, one fewer
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from holdfast.apps.serve.chronicle import journal_of, keep_told, log_to_stderr
from holdfast.apps.serve.fleetguard import FleetGuard
from holdfast.apps.serve.handover import Handover
from holdfast.apps.serve.offspring import DeathWatch, start_python
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.prestop import announces
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.terminal import has_terminal
from holdfast.apps.serve.workerlink import MARGIN, StopOrder, SupervisorEnd
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.lifecycle.fleet import (
    Decision,
    Died,
    Dump,
    DumpAsked,
    Event,
    Exit,
    Fleet,
    FleetTerms,
    ForceAsked,
    Kill,
    Mode,
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
    opening,
    wake,
)
from holdfast.domain.lifecycle.meaning import DEFAULT_MEANINGS, Meaning, Meanings
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.lifecycle import Journal
from holdfast.runtime.policyfile import PolicyFile
from holdfast.runtime.reaper import Reaper, is_first
from holdfast.runtime.signals import SignalChannel, SignalNote, Signals, block_signals
from holdfast.runtime.stacks import dump
from holdfast.runtime.timers import Alarm

__all__ = ["Supervisor"]

_WORKER: Final = "holdfast.apps.serve.worker"
_MEANINGS: Final[Meanings] = {
    **DEFAULT_MEANINGS,
    # Like the others: the workers are told first, and nobody is left behind.
    "SIGQUIT": Meaning.STOP,
    "SIGTTIN": Meaning.IGNORE,
    "SIGTTOU": Meaning.IGNORE,
}
"""In which order signals are taken that wait together; what they mean here is said above."""
_log: Final = logging.getLogger("holdfast.serve")


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the workers of one generation are started with."""

    plan: Plan
    file: PolicyFile

    @property
    def patience(self) -> Duration:
        return self.file.lifecycle.stop.grace


@dataclass(slots=True)
class _Child:
    link: SupervisorEnd
    phase: str = ""


class Supervisor:
    """See the module.

    Args:
        plan: what to host, and how.
        file: the policy to begin with.
        sockets: bound; closed when the fleet stops.
        url: where the service listens, for people.
        ready: called once, when the first worker accepts connections.
        journal: gets every record, those of the workers as well. By default our own are logged
            (workers log for themselves), and all are written to the time-line of the plan.
        terms: the times of the fleet; by default what the policy file says.

    Raises:
        ServeError: the time-line cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        file: PolicyFile,
        sockets: Sequence[socket.socket],
        url: str,
        *,
        ready: Callable[[], object] | None = None,
        journal: Journal | None = None,
        terms: FleetTerms | None = None,
    ) -> None:
        self._settings = {0: _Settings(plan, file)}
        self._sockets = list(sockets)
        self._url = url
        self._ready = ready
        self._journal = journal or journal_of(plan)
        terms = terms or FleetTerms(start=file.lifecycle.stop.start + MARGIN)
        self._state = opening(plan.workers, terms)
        self._children: dict[int, _Child] = {}
        self._events: deque[Event] = deque()
        self._untold: deque[Callable[[], object]] = deque()
        self._feeding = False
        self._alarm: Alarm | None = None
        self._code = 0
        self._why = "the fleet stops"
        self._stop_id = ""
        self._announced: Instant | None = None
        self._terminal = has_terminal()

    def run(self) -> int:
        """Supervise until told to stop; the exit code. For the main thread of a process."""
        log_to_stderr()
        block_signals(meanings=_MEANINGS)
        self._guard = FleetGuard(
            self._longest, self._state.terms.force, lambda: tuple(self._children), self._journal
        )
        signals = Signals(_MEANINGS, self._guard.told)
        signals.start()
        try:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                return runner.run(self._supervise(signals))
        finally:
            signals.close(restore=False)  # what comes now must not change the exit code

    async def _supervise(self, signals: Signals) -> int:
        self._driver: Driver = driver_of(asyncio.get_running_loop())
        reaper = Reaper() if is_first() else None
        if reaper is not None:
            reaper.start()
        self._notes: SignalChannel = signals.subscribe()
        service = self._settings[0].file.policy.service
        self._journal.write("process.started", service, data={"role": "supervisor"})
        try:
            self._feed(Tick())
            async for note in self._notes:
                self._signalled(note)
        finally:
            if reaper is not None:
                reaper.stop()
            for child in self._children.values():
                child.link.close()
        self._journal.write(
            "process.ended", detail=f"exit code {self._code}", data={"code": self._code}
        )
        return self._code

    # -- the machine -----------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        """Let the machine know; what performing its decisions brings about comes after that.

        What there is to tell is told last: whoever should read it may not, and that would hold us.
        """
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                self._state, decided = Fleet().step(
                    self._state, self._events.popleft(), self._driver.now()
                )
                for decision in decided:
                    self._perform(decision)
        finally:
            self._feeding = False
        if self._alarm is not None:
            self._driver.drop(self._alarm)
        at = wake(self._state)
        self._alarm = None if at == NEVER else self._driver.alarm(at, partial(self._feed, Tick()))
        if self._state.mode is Mode.STOPPING:
            self._guard.begun()
        self._tell_all()

    def _record(self, kind: str, *words: str, **more: Any) -> None:
        """Write a record as of now, once what is to be done now was done."""
        now = self._driver.now()
        self._untold.append(partial(self._journal.write, kind, *words, at=now, **more))

    def _tell_all(self) -> None:
        while self._untold:
            self._untold.popleft()()

    def _longest(self) -> Duration:
        return max(settings.patience for settings in tuple(self._settings.values()))

    def _perform(self, decision: Decision) -> None:
        match decision:
            case Spawn():
                self._spawn(decision)
            case Retire():
                self._retire(decision)
            case Kill(pid):
                self._signal(pid, signal.SIGKILL)
            case Dump(pid):
                self._signal(pid, signal.SIGQUIT)
            case Report():
                self._report(decision)
            case Exit(code):
                self._code = code
                self._notes.close()

    def _spawn(self, spawn: Spawn) -> None:
        settings = self._settings[spawn.generation]
        handover = Handover(
            plan=settings.plan,
            url=self._url,
            sockets=tuple(sock.fileno() for sock in self._sockets),
            supervisor=os.getpid(),
            slot=spawn.slot,
            generation=spawn.generation,
            path=tuple(sys.path),
            announced=self._announced,
        ).to_json()
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                numbers = (theirs.fileno(), *(sock.fileno() for sock in self._sockets))
                pid = start_python(_WORKER, str(theirs.fileno()), inherit=numbers)
        except OSError as error:
            self._events.append(NotStarted(spawn.ticket, f"no process: {error.strerror}"))
            return
        link = SupervisorEnd(ours, partial(self._heard, pid))
        self._children[pid] = _Child(link)
        link.say(handover)
        DeathWatch(pid, self._gone)
        self._events.append(Started(spawn.ticket, pid, settings.patience))

    def _retire(self, retire: Retire) -> None:
        if retire.final:
            # First our own copies: then the workers alone hold the accept queue, and empty it.
            for sock in self._sockets:
                sock.close()
            self._stop_id = self._stop_id or f"{os.getpid()}@{self._driver.now():.3f}"
        order = StopOrder(
            seconds=retire.seconds - min(MARGIN, retire.seconds / 2),
            final=retire.final,
            force=retire.force,
            cause=self._why if retire.final else "another worker takes its place",
            stop=self._stop_id if retire.final else "",
        )
        self._children[retire.pid].link.stop(order)

    def _report(self, report: Report) -> None:
        child = self._children.get(report.pid)
        detail = report.detail
        if report.kind == "component.forced" and child is not None and child.phase:
            detail = f"{detail} (it was {child.phase})"
        if report.kind == "stop.begun":
            self._record(report.kind, cause=detail)
            return
        data: dict[str, object] = {"generation": report.generation}
        if report.pid:
            data |= {"pid": report.pid, "slot": report.slot}
        if report.code is not None:
            data |= {"signal": -report.code} if report.code < 0 else {"code": report.code}
        subject = f"worker {report.pid}" if report.pid else ""
        self._record(report.kind, subject, detail, data=data)

    # -- the workers -----------------------------------------------------------------------------

    def _heard(self, pid: int, message: Mapping[str, object]) -> None:
        match message:
            case {"ready": True}:
                self._feed(Ready(pid))
                if self._ready is not None:
                    ready, self._ready = self._ready, None
                    ready()
            case {"phase": str(phase)}:
                self._children[pid].phase = phase
            case {"record": told}:
                record = keep_told(self._journal, pid, told)
                if self._announced is None and record is not None and announces(record):
                    self._announced = record.at  # who takes the place of it is unready as well
            case {"lost": lost}:
                _log.warning("worker %d had more to tell than was heard: %s records", pid, lost)
            case _:
                _log.error("worker %d says what nobody understands: %r", pid, message)

    def _gone(self, pid: int, code: int | None) -> None:
        self._children[pid].link.close()  # what it said last comes before its end
        self._feed(Died(pid, code))
        del self._children[pid]

    def _signal(self, pid: int, number: int) -> None:
        # Nobody but us waits for our children, so the number is theirs until their end is seen.
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    # -- signals ---------------------------------------------------------------------------------

    def _signalled(self, note: SignalNote) -> None:
        self._record("signal.received", note.name, f"from {note.sender}", data=note.as_dict())
        match note.name:
            case "SIGTERM" | "SIGINT":
                self._stop(note.line())
            case "SIGHUP":
                self._hang_up()
            case "SIGQUIT":
                self._quit(note.line())
            case "SIGUSR1":
                self._dump()
            case _:
                self._resize(+1 if note.name == "SIGTTIN" else -1)
        self._tell_all()

    def _stop(self, why: str) -> None:
        self._why = why
        stopping = self._state.mode is Mode.STOPPING
        self._feed(ForceAsked(f"{why}, while it stops") if stopping else StopAsked(why))

    def _hang_up(self) -> None:
        """Read the policy again, and give it to new workers; or stop with the terminal."""
        if self._terminal and not has_terminal():
            self._why = "the terminal is gone"
            self._feed(StopAsked(self._why))
            return
        if self._state.mode is Mode.STOPPING:
            return
        before = self._settings[self._state.latest].plan
        try:
            file = before.read()
        except ServeError as error:
            what = f"the policy was not changed, the old one holds: {error}"
            self._record("config.refused", detail=what)
            return
        plan = replace(before, source=file.source, data=file.data)
        self._settings[self._state.latest + 1] = _Settings(plan, file)
        self._feed(RollAsked())

    def _quit(self, why: str) -> None:
        if self._settings[self._state.latest].file.lifecycle.stop.quit == "stop":
            self._stop(why)
            return
        self._feed(DumpAsked())
        self._write_stacks("SIGQUIT")

    def _dump(self) -> None:
        for pid, child in self._children.items():
            if child.phase:  # before it has said anything it may not know the signal yet
                self._signal(pid, signal.SIGUSR1)
        self._write_stacks("SIGUSR1")

    def _write_stacks(self, why: str) -> None:
        self._tell_all()
        with suppress(OSError):  # the terminal is gone
            print(f"the supervisor, {os.getpid()}\n{dump()}", file=sys.stderr, flush=True)
        self._journal.write("dump.written", why, "the stacks of the supervisor")

    def _resize(self, by: int) -> None:
        before = len(self._state.slots)
        self._feed(Resize(by))
        _log.info("%d workers are wanted now, %d before", len(self._state.slots), before)
