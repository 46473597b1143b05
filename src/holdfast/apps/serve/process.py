"""A service that has its process to itself: its signals, its memory, its last moment."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Final

from holdfast.adapters.uvloop import loop_factory
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.policyfile import PolicyFile
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.service import Service
from holdfast.apps.serve.stopplan import StopPlan, stop_plan
from holdfast.domain.lifecycle.history import Outcome
from holdfast.domain.lifecycle.meaning import Meaning, meanings
from holdfast.runtime.lastresort import end_within
from holdfast.runtime.lifecycle import ExitCode, FileReader, LogReader
from holdfast.runtime.lifecycle.journal import Reader
from holdfast.runtime.memory import StopMemory
from holdfast.runtime.reaper import Reaper, is_first
from holdfast.runtime.signals import SignalNote, Signals, block_signals, install_quit

__all__ = ["ServiceProcess", "outcome_of"]

_OUTCOMES: Final = {
    ExitCode.TIMED_OUT: Outcome.TIMED_OUT,
    ExitCode.FORCED: Outcome.FORCED,
}


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
        stop = file.lifecycle.stop
        meant = meanings(quit=stop.quit)
        block_signals(meanings=meant)
        memory = StopMemory.of(file.policy.service or self.plan.target, stop.memory)
        times = stop_plan(file, memory.recall().failures)
        quitting = install_quit(meant.get("SIGQUIT", Meaning.IGNORE), before=self._quits)
        signals = Signals(meant)
        signals.start()
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                code = runner.run(self._live(file, sockets, signals, times, memory))
                memory.ended(outcome_of(code))
                end_within(times.budget.cleanup, code)
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
            self.plan, file, self.url, sockets, times, readers=self._readers()
        )

        async def remember() -> None:
            await asyncio.to_thread(memory.begun, times.memory_terms())

        service.host.on_stop(remember, name="memory of stops")
        try:
            return await service.live(signals, self._ready)
        finally:
            if reaper is not None:
                reaper.stop()

    def _readers(self) -> list[Reader]:
        readers: list[Reader] = [LogReader()]
        if self.plan.timeline:
            try:
                readers.append(FileReader(self.plan.timeline))
            except OSError as error:
                raise ServeError(
                    f"--timeline {self.plan.timeline}: {error.strerror}; name a file that can be "
                    "appended to"
                ) from None
        return readers

    def _quits(self, note: SignalNote) -> None:
        # Between any two instructions of the main thread: no lock may be waited for here.
        if self._service is not None:
            journal = self._service.host.journal
            journal.write("signal.received", note.name, f"from {note.sender}", data=note.as_dict())
