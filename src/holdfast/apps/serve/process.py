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
from holdfast.apps.serve.service import Service, terminal_is_gone
from holdfast.apps.serve.stopplan import StopPlan, memory_of, stop_plan
from holdfast.domain.errors import UsageError
from holdfast.domain.instant import Duration
from holdfast.domain.lifecycle.history import Outcome
from holdfast.domain.lifecycle.meaning import Meaning, Meanings, meanings
from holdfast.runtime.lifecycle import ExitCode, LogReader
from holdfast.runtime.lifecycle.stopguard import StopGuard
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
_SOON: Final[Duration] = 0.05


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
        self._meant: Meanings = {}
        self._loop: asyncio.AbstractEventLoop | None = None

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
        self._meant = meant = meanings(quit=file.lifecycle.stop.quit)
        block_signals(meanings=meant)
        memory = memory_of(file, self.plan.target)
        times = stop_plan(file, memory.recall().failures)
        budget = times.budget
        self._guard = guard = StopGuard(budget.total, budget.cleanup, times.settings.grace)
        quitting = install_quit(meant.get("SIGQUIT", Meaning.IGNORE), before=guard.quitting)
        signals = Signals(meant, self._heard)
        signals.start()
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                code = runner.run(self._live(file, sockets, signals, times, memory))
                guard.stopped(code)
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
        self._loop = asyncio.get_running_loop()
        self._service = service = Service(
            self.plan,
            file,
            self.url,
            sockets,
            times,
            readers=[LogReader(), *timeline_of(self.plan)],
        )
        self._guard.watch(service.host)

        async def remember() -> None:
            self._guard.begun()
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
        meaning = self._meant.get(note.name)
        hung_up = meaning is Meaning.RELOAD and terminal_is_gone()
        if meaning is not Meaning.STOP and not hung_up:
            return
        if self._service is None:
            # The application is being loaded: nothing has started, so a stop needs no order, and
            # whoever imports cannot be told.
            if self.plan.uds and not self.plan.reload:
                remove_uds(self.plan.uds)
            os._exit(_SIGNALLED + note.number)
        if not hung_up:
            self._guard.told(note)
        elif self._loop is not None:  # a host that is not up yet has nothing to reload
            self._loop.call_soon_threadsafe(self._hang_up)

    def _hang_up(self) -> None:
        if self._service is not None and self._loop is not None:
            try:
                self._service.host.stop("the terminal is gone", by="SIGHUP")
            except UsageError:  # it is about to start
                self._loop.call_later(_SOON, self._hang_up)
