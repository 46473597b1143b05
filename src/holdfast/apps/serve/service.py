"""A service in one process: the application, its server, and the host that looks after both."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from holdfast.adapters.asgi.health import HealthPages
from holdfast.adapters.asgi.types import App
from holdfast.apps.serve.chronicle import log_to_stderr
from holdfast.apps.serve.direct import DirectParts, direct_parts
from holdfast.apps.serve.gated import GatedParts, gated_parts
from holdfast.apps.serve.hosted import Hosted
from holdfast.apps.serve.operator import Operator, Pages, pages
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.prestop import Prestop
from holdfast.apps.serve.stopplan import StopPlan
from holdfast.apps.serve.target import load_target
from holdfast.apps.serve.terminal import has_terminal
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.quota import threads_for
from holdfast.domain.policy import describe
from holdfast.domain.record import Record
from holdfast.runtime.cgroup import read_quota
from holdfast.runtime.lifecycle import ExitCode, Host, Journal
from holdfast.runtime.lifecycle.audit import SignalSource
from holdfast.runtime.lifecycle.journal import Reader
from holdfast.runtime.policyfile import PolicyFile

__all__ = ["Service", "terminal_is_gone"]

_log: Final = logging.getLogger("holdfast.serve")
_SHOWN: Final = 200
"""Records that the operator is shown."""
_RESTART: Final = 1012
_GOING_AWAY: Final = 1001


class Service:
    """To be made on the loop that it is to live on.

    Args:
        plan: what to host, and how.
        file: the policy to begin with.
        url: where it listens, for people.
        sockets: bound.
        times: of the stop.
        readers: are handed what happens.
        shared: whether other processes accept from the same sockets.
        last: says when it stops whether nobody else serves what waits in their queues.
        parent: the supervisor of this process; 0 for none.

    Attributes:
        host: its life.

    Raises:
        ServeError: the application cannot be loaded.
    """

    def __init__(
        self,
        plan: Plan,
        file: PolicyFile,
        url: str,
        sockets: list[socket.socket],
        times: StopPlan,
        *,
        readers: Sequence[Reader],
        shared: bool = False,
        last: Callable[[], bool] = bool,
        parent: int = 0,
    ) -> None:
        self._plan = plan
        self._url = url
        self._times = times
        self._parent = parent
        self._shared = shared
        self._last = last
        self._hosted = hosted = Hosted(load_target(plan.target, factory=plan.factory), file)
        self.host = host = Host(
            hosted.service,
            terms=times.host_terms(),
            journal=Journal(*readers),
            requests=hosted.counts,
        )
        self._parts = parts = self._put_together(file, sockets)
        self._prestop = Prestop(parts.announce, parts.latest, host, self._drain_terms)
        host.add("application", start=parts.application.start, stop=parts.application.stop)
        host.add("server", parts.server)
        host.on_reload(self._reload)

    def announced(self, at: Instant) -> None:
        """Be unready: the stop was announced at `at`, before this process was there."""
        self._prestop.since(at)

    async def live(
        self, signals: SignalSource | None = None, ready: Callable[[], None] | None = None
    ) -> ExitCode:
        """Serve until told to stop; the exit code.

        Args:
            signals: what tells it.
            ready: called once, when all is up.

        Raises:
            OSError: another process listens on the address by now.
        """
        if ready is not None:
            self.host.journal.read_by(_Once(self.host, ready))
        self._threads()
        operator = Operator(self._pages(), {"/prestop": self._prestop.asked})
        if self._plan.admin:
            await operator.start()
        try:
            code = await self.host.run(signals)
        finally:
            operator.close()
        failure = self._parts.server.failure
        if failure is not None and failure.errno == errno.EADDRINUSE:
            raise failure
        return code

    def _put_together(
        self, file: PolicyFile, sockets: list[socket.socket]
    ) -> DirectParts | GatedParts:
        plan, stop = self._plan, self._times.settings
        health = self._with_health(file)
        if plan.server == "uvicorn":
            return direct_parts(
                plan,
                self._hosted,
                health(self._hosted).serve,
                sockets,
                self._drain_terms,
                self._tell,
                returning=stop.returning,
                cut=self.host.cut,
                shared=self._shared,
                last=self._last,
            )
        log_to_stderr()  # uvicorn would have seen to that
        return gated_parts(
            plan.server,
            plan,
            self._hosted,
            sockets,
            self._drain_terms,
            self._tell,
            stop=stop,
            cut=self.host.cut,
            around=lambda app: health(app).serve,
            shared=self._shared,
        )

    def _with_health(self, file: PolicyFile) -> Callable[[App], HealthPages]:
        host, settings, details = self.host, file.lifecycle.health, file.policy.wire.details
        host.health.cache = settings.cache
        host.health.timeout = settings.check_timeout

        async def report() -> dict[str, Any]:
            return (await host.health.ready()).as_dict()

        return lambda app: HealthPages(
            app,
            report,
            settings,
            # In brief: who sent the signal is nobody's business out there, details or not.
            stopping=lambda: host.brief if details or not host.brief else str(host.phase),
            retry_after=file.lifecycle.stop.retry_after,
            details=details,
        )

    def _threads(self) -> None:
        """As many threads for blocking calls as the processors are good for that we may use."""
        advice = threads_for(read_quota())
        pool = ThreadPoolExecutor(advice.count, thread_name_prefix="blocking call")
        asyncio.get_running_loop().set_default_executor(pool)

    # -- what happens ----------------------------------------------------------------------------

    def _tell(self, kind: str, subject: str, detail: str = "", **data: object) -> None:
        self.host.journal.write(kind, subject, detail, data=data)

    def _drain_terms(self) -> DrainTerms:
        by_hand = self.host.cause.startswith("SIGINT") and has_terminal()
        return self._times.drain_terms(
            tls=bool(self._plan.certificate),
            at_once=by_hand,
            heirs=self._shared and not self._last(),
            waited=self._prestop.lasted(),
        )

    def _reload(self) -> None:
        if terminal_is_gone():
            self.host.stop("the terminal is gone", by="SIGHUP")
            return
        file, before = self._plan.read(), self._hosted.file.lifecycle
        self._hosted.use(file)
        if file.lifecycle != before:
            _log.warning("[stop] and [health] were changed: that holds from the next start on")
        _log.info("the policy was read again from %s\n%s", _source(file), describe(file.policy))

    # -- what the operator sees ------------------------------------------------------------------

    def _pages(self) -> Pages:
        def policy() -> str:
            file = self._hosted.file
            return f"{describe(file.policy)}\nfrom {_source(file)}\n"

        return pages(self._about, policy, self._hosted.counts, self._life)

    def _about(self) -> dict[str, Any]:
        policy = self._hosted.file.policy
        return {
            "pid": os.getpid(),
            "parent": self._parent,
            "service": policy.service,
            "target": self._plan.target,
            "url": self._url,
            "mode": policy.mode,
        }

    def _life(self) -> dict[str, Any]:
        host, times = self.host, self._times
        return {
            "phase": host.phase,
            "ready": host.ready,
            "cause": host.cause,
            "stop": times.line(),
            "warnings": list(times.warnings),
            "records": [record.as_dict() for record in host.journal.records[-_SHOWN:]],
        }


class _Once:
    """Tells once that everything is up."""

    def __init__(self, host: Host, tell: Callable[[], None]) -> None:
        self._host = host
        self._tell: Callable[[], None] | None = tell

    def __call__(self, record: Record) -> None:
        if record.kind == "ready.changed" and self._host.ready and self._tell is not None:
            tell, self._tell = self._tell, None
            tell()


def _source(file: PolicyFile) -> str:
    return "the built-in defaults" if file.source is None else str(file.source)


_STARTED_AT_TERMINAL: Final = has_terminal()


def terminal_is_gone() -> bool:
    """Whether it was started at a terminal that is there no more."""
    return _STARTED_AT_TERMINAL and not has_terminal()
