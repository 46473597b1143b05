"""A service that has its process to itself: its signals, its memory, its last moment."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from typing import Final

from holdfast.adapters.uvloop import loop_factory
from holdfast.apps.serve.chronicle import timeline_of
from holdfast.apps.serve.listen import remove_uds
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.service import Service
from holdfast.apps.serve.stopplan import StopPlan, memory_of, stop_plan
from holdfast.domain.instant import Duration, format_duration
from holdfast.domain.lifecycle.history import Outcome
from holdfast.domain.lifecycle.meaning import Meaning, Meanings, meanings
from holdfast.runtime.clock import monotonic
from holdfast.runtime.lastresort import LastResort
from holdfast.runtime.lifecycle import ExitCode, HostTerms, LogReader, Phase
from holdfast.runtime.memory import StopMemory
from holdfast.runtime.policyfile import PolicyFile
from holdfast.runtime.reaper import Reaper, is_first
from holdfast.runtime.signals import SignalNote, Signals, block_signals, install_quit

__all__ = ["ServiceProcess", "outcome_of"]

_OUTCOMES: Final = {
    ExitCode.TIMED_OUT: Outcome.TIMED_OUT,
    ExitCode.FORCED: Outcome.FORCED,
}
_SIGNALLED: Final = 128
_HURRIED: Final = HostTerms().hurried
_SLACK: Final[Duration] = 1.0
"""Seconds behind its own end that a stop gets, before it is taken for stuck."""


def outcome_of(code: ExitCode) -> Outcome:
    """What is remembered of a stop that ended so."""
    return _OUTCOMES.get(code, Outcome.CLEAN)


class ServiceProcess:
    """One process of a service. `run` is its life.

    Args:
        plan: what was asked for; the policy in it was found right.
        url: where it listens, for people.
        ready: called once, when all is up.
    """

    def __init__(self, plan: Plan, url: str, ready: Callable[[], None] | None = None) -> None:
        self.plan = plan
        self.url = url
        self._ready = ready
        self._service: Service | None = None

    def run_reloaded(self, sockets: list[socket.socket] | None) -> None:
        """`run` in a process that a reloader has started."""
        try:
            code = self.run(sockets or [])
        except ServeError as error:
            print(f"{error.trace}holdfast serve: {error}", file=sys.stderr, flush=True)
            code = int(ExitCode.FAILED_TO_START)
        sys.exit(code)

    def run(self, sockets: list[socket.socket]) -> int:
        """Serve on bound sockets until told to stop; the exit code.

        Raises:
            ServeError: the application cannot be loaded, or the time-line cannot be written.
            OSError: a socket cannot be listened on.
        """
        file = self.plan.policy()
        meant = meanings(quit=file.lifecycle.stop.quit)
        block_signals(meanings=meant)
        memory = memory_of(file, self.plan.target)
        times = stop_plan(file, memory.recall().failures)
        quitting = install_quit(meant.get("SIGQUIT", Meaning.IGNORE), before=self._quits)
        self._last = last = _Last(times, meant, self._held_up)
        signals = Signals(meant, self._heard)
        signals.start()
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                code = runner.run(self._live(file, sockets, signals, times, memory))
                last.stopped(code)
                memory.ended(outcome_of(code))
        finally:
            signals.close(restore=False)  # what comes now must not change the exit code
            if quitting is not None:
                quitting.close()
        return int(code)

    async def _live(
        self,
        file: PolicyFile,
        sockets: list[socket.socket],
        signals: Signals,
        times: StopPlan,
        memory: StopMemory,
    ) -> ExitCode:
        reaper = Reaper() if is_first() else None
        if reaper is not None:
            reaper.start()
        self._service = service = Service(
            self.plan,
            file,
            self.url,
            sockets,
            times,
            readers=[LogReader(), *timeline_of(self.plan)],
        )

        async def remember() -> None:
            self._last.begun()
            await asyncio.to_thread(memory.begun, times.memory_terms())

        service.host.on_stop(remember, name="memory of stops")
        try:
            return await service.live(signals, self._ready)
        finally:
            if reaper is not None:
                reaper.stop()

    # -- out of the loop -------------------------------------------------------------------------

    def _heard(self, note: SignalNote) -> None:
        """One signal; in the thread that has read it, also while the loop is stuck."""
        if not self._last.is_stop(note):
            return
        if self._service is None:
            # The application is being loaded: nothing has started, so a stop needs no order, and
            # whoever imports cannot be told.
            if self.plan.uds and not self.plan.reload:
                remove_uds(self.plan.uds)
            os._exit(_SIGNALLED + note.number)
        self._last.told(note)

    def _held_up(self, text: str, code: int) -> bool:
        """The last resort ends the process; whether its host has not ended, and this tells it."""
        if self._service is None or self._service.host.phase is Phase.STOPPED:
            return False
        host, notes = self._service.host, self._last.notes
        write = host.journal.write
        heard = sum(record.data.get("meaning") == Meaning.STOP for record in host.journal.records)
        for note in notes[heard:]:  # the host is stuck with the loop, and knows nothing of these
            data = {
                **note.as_dict(),
                "meaning": str(Meaning.STOP),
                "before": str(host.phase),
                "after": str(host.phase),
                "again": note is not notes[0],
            }
            write("signal.received", note.name, f"from {note.sender}", at=note.at, data=data)
        cause = host.cause or (notes[0].line() if notes else "")
        write("component.forced", "event loop", text, cause=cause)
        name = ExitCode(code).name.lower()
        write("process.ended", name, f"exit code {code}", cause=cause, data={"code": code})
        return True

    def _quits(self, note: SignalNote) -> None:
        # Between any two instructions of the main thread: no lock may be waited for here.
        if self._service is None:
            return
        host, code = self._service.host, _SIGNALLED + note.number
        data = {
            **note.as_dict(),
            "meaning": str(Meaning.DUMP_AND_EXIT),
            "before": str(host.phase),
            "after": str(Phase.STOPPED),
            "again": host.stopping,
        }
        write = host.journal.write
        write("signal.received", note.name, f"from {note.sender}", data=data)
        write("dump.written", "stacks", "to standard error", cause=note.name)
        write("process.ended", "quit", f"exit code {code}", cause=note.name, data={"code": code})


class _Last:
    """When the process ends whatever it is stuck in: within what the platform gives."""

    def __init__(self, times: StopPlan, meant: Meanings, tell: Callable[[str, int], bool]) -> None:
        self._budget = times.budget
        left = max(0.0, times.settings.grace - times.budget.total)
        self._hard = times.budget.total + min(_SLACK, left)
        self._meant = meant
        self._resort = LastResort(tell)
        self._over = False
        self.notes: list[SignalNote] = []
        """The signals that asked for a stop."""

    def is_stop(self, note: SignalNote) -> bool:
        """Whether a signal asks for a stop."""
        return self._meant.get(note.name) is Meaning.STOP

    def told(self, note: SignalNote) -> None:
        """The process was told to stop; any thread."""
        if self._over:
            return
        self.notes.append(note)
        if len(self.notes) == 1:
            self.begun()
        else:  # force: what is under way has a moment, and so has the clean-up
            at = monotonic() + min(self._budget.cleanup, _HURRIED) + _SLACK
            self._resort.by(at, ExitCode.FORCED, "it was told to stop, and told again")

    def begun(self) -> None:
        """The stop has begun."""
        why = f"the stop began {format_duration(self._hard)} ago"
        code = ExitCode.TIMED_OUT if len(self.notes) < 2 else ExitCode.FORCED
        self._resort.by(monotonic() + self._hard, code, why)

    def stopped(self, code: ExitCode) -> None:
        """Everything was stopped; what is left is the interpreter."""
        self._over = True
        self._resort.by(monotonic() + self._budget.cleanup, code, "everything was stopped")
