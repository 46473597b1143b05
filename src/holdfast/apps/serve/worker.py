"""A worker process: `python -m holdfast.apps.serve.worker FD`, started by a supervisor only."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from typing import Final

from holdfast.adapters.uvicorn import Settings, UvicornApplication, UvicornServer
from holdfast.adapters.uvloop import loop_factory
from holdfast.apps.serve.handover import Handover, handover_from_json
from holdfast.apps.serve.hosted import Hosted, drain_limit
from holdfast.apps.serve.offspring import die_with
from holdfast.apps.serve.operator import Operator, pages
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.policyfile import PolicyFile
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.target import load_target
from holdfast.apps.serve.workerlink import MARGIN, StopOrder, WorkerEnd
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.phase import Phase
from holdfast.domain.lifecycle.stopbudget import stop_budget
from holdfast.domain.policy import describe
from holdfast.runtime.lifecycle import Host, HostTerms, Journal, LogReader

__all__ = ["main", "run_worker"]

_UNUSABLE: Final = 2
_INTERRUPTED: Final = 130
_ORDER_FOLLOWS: Final = 0.25
"""Seconds after a signal in which an order of the supervisor comes, if it was told as well."""
_log: Final = logging.getLogger("holdfast.serve")


def main(words: list[str]) -> int:
    """Serve until told to stop; the exit code."""
    _dump_on_signals()
    link = WorkerEnd(socket.socket(fileno=int(words[0])))
    text = link.handover()
    if not text:  # the supervisor was gone before it could say anything
        return 0
    try:
        handover = handover_from_json(text)
        if not die_with(handover.supervisor):
            return 0
        sys.path[:] = handover.path
        link.phase(Phase.INITIALIZING)
        return _serve(handover, link)
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        link.close()


def _dump_on_signals() -> None:
    """From the first moment on the stacks can be asked for, and asking does no harm."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=True)


def _serve(handover: Handover, link: WorkerEnd) -> int:
    sockets = [socket.socket(fileno=number) for number in handover.sockets]
    for sock in sockets:
        sock.set_inheritable(False)
    try:
        file = handover.plan.policy()
        link.listen(file.lifecycle.stop.grace)
        return run_worker(handover.plan, file, handover.url, sockets, link)
    except ServeError as error:
        print(f"{error.trace}holdfast serve: {error}", file=sys.stderr, flush=True)
        return _UNUSABLE


def run_worker(
    plan: Plan, file: PolicyFile, url: str, sockets: list[socket.socket], link: WorkerEnd
) -> int:
    """Serve until the supervisor or a signal says to stop; the exit code.

    It is the supervisor that forces: a terminal sends its signals to all of us, and one of them
    with the order that follows it is not two.

    Args:
        plan: what to host, and how.
        file: the policy to begin with.
        url: where the service listens, for people.
        sockets: bound; shared with the other workers.
        link: to the supervisor.

    Raises:
        ServeError: it cannot start, and whoever gave the command can put that right.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_Service(plan, file, url, sockets, link).live())


class _Service:
    """The application with its server, in a host that does what the supervisor says."""

    def __init__(
        self,
        plan: Plan,
        file: PolicyFile,
        url: str,
        sockets: list[socket.socket],
        link: WorkerEnd,
    ) -> None:
        self._plan, self._url, self._link = plan, url, link
        self._stop = stop = file.lifecycle.stop
        self._hosted = hosted = Hosted(load_target(plan.target, factory=plan.factory), file)
        self._budget = stop_budget(
            grace=max(0.0, stop.grace - MARGIN),
            cleanup=stop.cleanup,
            base=drain_limit(file.policy) if stop.base is None else stop.base,
            cap=stop.cap,
            lame_duck=stop.lame_duck,
            lame_duck_least=stop.lame_duck_least,
        )
        settings = Settings(hosted, hosted, access_log=plan.access_log)
        self._host = Host(
            hosted.service,
            terms=HostTerms(
                start=stop.start,
                drain=self._budget.lame_duck + self._budget.drain,
                cleanup=self._budget.cleanup,
            ),
            journal=Journal(LogReader(_log), link.follow),
            requests=hosted.counts,
        )
        application = UvicornApplication(settings)
        self._server = UvicornServer(
            settings,
            application,
            sockets,
            self._drain_terms,
            self._tell,
            cut=self._host.cut,
            shared=True,
        )
        self._operator = Operator(
            pages(self._about, self._policy, hosted.counts, self._lifecycle), {}
        )
        self._host.add("application", start=application.start, stop=application.stop)
        self._host.add("server", self._server)

    async def live(self) -> int:
        """Serve; the exit code."""
        loop = asyncio.get_running_loop()
        self._link.obey(lambda order: loop.call_soon_threadsafe(self._ordered, order))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._plan.admin:
            await self._operator.start()
        try:
            return await self._host.run()
        finally:
            self._operator.close()

    def _ordered(self, order: StopOrder) -> None:
        self._server.last = order.final
        if order.force:
            self._host.force(order.cause, by="the supervisor")
        else:
            self._host.stop(order.cause, by="the supervisor")

    def _signalled(self, name: str) -> None:
        # A terminal, and systemd as well, tells all of us at once. Then the order of the supervisor
        # is on its way, and with it who serves what is still queued.
        asyncio.get_running_loop().call_later(_ORDER_FOLLOWS, self._stop_alone, name)

    def _stop_alone(self, name: str) -> None:
        if not self._host.stopping:
            self._server.last = False  # the other workers serve what is queued
            self._host.stop(by=name)

    def _hang_up(self) -> None:
        try:
            file = self._plan.read()
        except ServeError as error:
            what = f"the policy was not changed, the old one holds: {error}"
            self._host.journal.write("config.refused", detail=what)
            return
        self._hosted.use(file)
        self._host.journal.write("config.reloaded", detail=str(file.source or "built-in"))

    def _drain_terms(self) -> DrainTerms:
        stop = self._stop
        return DrainTerms(
            calm=stop.calm,
            least=stop.lame_duck_least,
            most=self._budget.lame_duck,
            quiet=stop.quiet,
            farewell=stop.websocket,
        )

    def _tell(self, kind: str, subject: str, detail: str = "", **data: object) -> None:
        self._host.journal.write(kind, subject, detail, data=data)

    def _about(self) -> dict[str, object]:
        policy = self._hosted.file.policy
        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "service": policy.service,
            "target": self._plan.target,
            "url": self._url,
            "mode": policy.mode,
        }

    def _lifecycle(self) -> dict[str, object]:
        records = [record.as_dict() for record in self._host.journal.records]
        return {"phase": str(self._host.phase), "ready": self._host.ready, "records": records}

    def _policy(self) -> str:
        file = self._hosted.file
        return f"{describe(file.policy)}\nfrom {file.source or 'the built-in defaults'}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
