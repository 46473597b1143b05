"""A worker process: `python -m holdfast.apps.serve.worker FD`, started by a supervisor only."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from holdfast.apps.serve.handover import Handover, handover_from_json
from holdfast.apps.serve.offspring import die_with
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.stopplan import memory_of, stop_plan
from holdfast.apps.serve.workerlink import MARGIN, StopOrder, WorkerEnd
from holdfast.domain.instant import Duration
from holdfast.domain.lifecycle.meaning import Meaning, Meanings, meanings
from holdfast.domain.record import Record
from holdfast.runtime.lifecycle import ExitCode, LogReader
from holdfast.runtime.lifecycle.stopguard import StopGuard
from holdfast.runtime.policyfile import PolicyFile
from holdfast.runtime.signals import SignalNote, Signals, block_signals, install_quit

__all__ = ["main"]

_UNUSABLE: Final = 2
_INTERRUPTED: Final = 130
_ORDER_FOLLOWS: Final[Duration] = 0.25
"""Seconds after a signal in which an order of the supervisor comes, if it was told as well."""
_log: Final = logging.getLogger("holdfast.serve")


def main(words: list[str]) -> int:
    """Serve until told to stop; the exit code."""
    link = WorkerEnd(socket.socket(fileno=int(words[0])))
    try:
        text = link.handover()
        if not text:  # the supervisor was gone before it could say anything
            return 0
        handover = handover_from_json(text)
        if not die_with(handover.supervisor):
            return 0
        sys.path[:] = handover.path
        return _serve(handover, link)
    except ServeError as error:
        print(f"{error.trace}holdfast serve: {error}", file=sys.stderr, flush=True)
        return _UNUSABLE
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        link.close()


def _serve(handover: Handover, link: WorkerEnd) -> int:
    sockets = [socket.socket(fileno=number) for number in handover.sockets]
    for sock in sockets:
        sock.set_inheritable(False)
    file = handover.plan.policy()
    stop = file.lifecycle.stop
    meant = meanings(quit=stop.quit)
    heeded = _heeded(meant)
    block_signals(meanings=heeded)  # before there is any thread
    worker = _Worker(handover, file, sockets, link, meant)
    quitting = install_quit(meant.get("SIGQUIT", Meaning.IGNORE), before=worker.guard.quitting)
    link.listen(stop.grace)
    link.phase("initializing")
    signals = Signals(heeded, worker.signalled)
    signals.start()
    try:
        return worker.run(signals)
    finally:
        signals.close(restore=False)  # what comes now must not change the exit code
        if quitting is not None:
            quitting.close()


def _heeded(meant: Meanings) -> Meanings:
    """The meanings for the host: it stops when the supervisor says so, and is forced by it alone.

    A terminal and systemd tell all of us at once. One signal with the order that follows it are not
    two, and would be force.
    """
    return {
        name: Meaning.IGNORE if meaning is Meaning.STOP else meaning
        for name, meaning in meant.items()
    }


class _Worker:
    """The service of this process, and what it is told from outside.

    Attributes:
        guard: of its last moments. How long a stop may take is for the supervisor to watch.
    """

    def __init__(
        self,
        handover: Handover,
        file: PolicyFile,
        sockets: list[socket.socket],
        link: WorkerEnd,
        meant: Meanings,
    ) -> None:
        self._handover, self._file, self._sockets = handover, file, sockets
        self._link, self._meant = link, meant
        self._memory = memory_of(file, handover.plan.target)
        self._times = stop_plan(file, self._memory.recall().failures, margin=MARGIN)
        budget = self._times.budget
        self.guard = StopGuard(budget.total, budget.cleanup, self._times.settings.grace)
        self._final = False
        self._stop = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = False
        self._waiting: list[Callable[[], object]] = []

    def run(self, signals: Signals) -> int:
        """Serve; the exit code.

        Raises:
            ServeError: it cannot start, and whoever gave the command can put that right.
        """
        from holdfast.adapters.uvloop import loop_factory
        from holdfast.apps.serve.process import outcome_of

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            code = runner.run(self._live(signals))
            self._memory.ended(outcome_of(code))
            self.guard.stopped(code)
        return int(code)

    async def _live(self, signals: Signals) -> ExitCode:
        from holdfast.apps.serve.service import Service

        self._loop = loop = asyncio.get_running_loop()
        given = self._handover
        service = Service(
            given.plan,
            self._file,
            given.url,
            self._sockets,
            self._times,
            # The supervisor first: nobody may read what is logged, and then it stands still there.
            readers=[self._link.follow, self._follow, LogReader(_log)],
            shared=True,
            last=lambda: self._final,
            parent=given.supervisor,
        )
        self._host = service.host
        self.guard.watch(self._host)
        if given.announced is not None:
            self._when_begun(partial(service.announced, given.announced))
        self._host.on_stop(self._remember, name="memory of stops")
        self._link.obey(lambda order: loop.call_soon_threadsafe(self._ordered, order))
        return await service.live(signals)

    async def _remember(self) -> None:
        await asyncio.to_thread(self._memory.begun, self._times.memory_terms(), self._stop)

    def signalled(self, note: SignalNote) -> None:
        """One signal; in the thread that has read it."""
        if self._loop is not None and self._meant.get(note.name) is Meaning.STOP:
            loop = self._loop
            loop.call_soon_threadsafe(
                loop.call_later, _ORDER_FOLLOWS, self._stop_alone, note.line()
            )

    def _stop_alone(self, why: str) -> None:
        # Told to this worker only: nobody else ends, and the others serve what is queued.
        self._when_begun(partial(self._host.stop, by=why))

    def _ordered(self, order: StopOrder) -> None:
        self._final |= order.final
        self._stop = self._stop or order.stop
        obey = self._host.force if order.force else self._host.stop
        self._when_begun(partial(obey, by=order.cause))

    # -- a host that has not begun has nothing to stop, so an order waits until it has -------------

    def _when_begun(self, do: Callable[[], object]) -> None:
        if self._begun:
            do()
        else:
            self._waiting.append(do)

    def _follow(self, record: Record) -> None:
        if record.kind == "process.started" and self._loop is not None:
            self._loop.call_soon(self._begin)  # it is in the middle of beginning

    def _begin(self) -> None:
        self._begun = True
        waiting, self._waiting = self._waiting, []
        for do in waiting:
            do()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
