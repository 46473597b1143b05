"""The host: starts the components of a process, serves, and stops so that nothing is lost.

    host = Host("shop")
    host.add("db", start=db.connect, stop=db.close)
    host.add("consumer", run=consume, needs=["db"])
    code = await host.run(signals)

Rule 1. It is up when everything is up. Where something cannot start, what has started is stopped.
Rule 2. `stop` is called for what has started, and for nothing else: those that need others come
        first. An error is recorded, and the rest goes on. Every call is bounded.
Rule 3. Who dies takes the process down, gracefully, with its cause.
Rule 4. The process is the root scope: a stop bounds it, and all work that is open follows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from holdfast.domain.errors import HoldfastError, UsageError
from holdfast.domain.instant import NEVER
from holdfast.domain.lifecycle.order import waves
from holdfast.domain.lifecycle.phase import (
    CleanedUp,
    Drained,
    ExitCode,
    Negotiated,
    Phase,
    StopAsked,
)
from holdfast.domain.tree import Outcome
from holdfast.ports.component import Component
from holdfast.ports.pool import Pool
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle.audit import Audit, SignalSource
from holdfast.runtime.lifecycle.ending import Ending
from holdfast.runtime.lifecycle.health import Health
from holdfast.runtime.lifecycle.journal import Journal
from holdfast.runtime.lifecycle.parts import Step, Stop, Worker, part_of
from holdfast.runtime.lifecycle.patience import patiently
from holdfast.runtime.lifecycle.process import Process
from holdfast.runtime.lifecycle.shelter import name_of
from holdfast.runtime.lifecycle.starting import Starting
from holdfast.runtime.lifecycle.stopping import Hook, Stopping
from holdfast.runtime.lifecycle.terms import HostTerms
from holdfast.runtime.scope import AMBIENT

__all__ = ["ComponentFailed", "Host", "current"]

_log: Final = logging.getLogger("holdfast.lifecycle")


class ComponentFailed(HoldfastError):
    """A component could not start; what had started was stopped.

    Attributes:
        component: its name.
        reason: why, in one line. Where it raised, its error is the cause of this one.
    """

    def __init__(self, component: str, reason: str) -> None:
        super().__init__(component, reason)
        self.component = component
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Host:
    """One process, or the part of it that lives on one loop.

    Args:
        name: of the service; for records and causes.
        terms: the times. May be set anew until the host starts.
        journal: where its records go; one of its own by default.
        requests: what is served, counted by whoever serves; goes into the exit snapshot.

    Attributes:
        health: its checks; ready only while the host is.
    """

    def __init__(
        self,
        name: str = "",
        *,
        terms: HostTerms | None = None,
        journal: Journal | None = None,
        requests: Counter[str] | None = None,
    ) -> None:
        self._process = Process(
            name,
            terms or HostTerms(),
            Journal() if journal is None else journal,
            Counter() if requests is None else requests,
        )
        self._stopping = Stopping(self._process)
        self._audit = Audit(self._process)
        self._exit_hooks: list[Hook] = []
        self._life: asyncio.Task[None] | None = None
        self._starting: Starting | None = None
        self.health = Health(gate=self._not_ready)

    # -- reading ---------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the service."""
        return self._process.name

    @property
    def terms(self) -> HostTerms:
        """The times."""
        return self._process.terms

    @terms.setter
    def terms(self, terms: HostTerms) -> None:
        self._only_before_start("its times are fixed")
        self._process.terms = terms

    @property
    def journal(self) -> Journal:
        """What happened."""
        return self._process.journal

    @property
    def requests(self) -> Counter[str]:
        """What was served, by whoever counts it."""
        return self._process.requests

    @property
    def phase(self) -> Phase:
        """Where the process is in its life."""
        return self._process.phase

    @property
    def ready(self) -> bool:
        """Whether all components are up and no stop has begun."""
        return self._process.ready

    @property
    def stopping(self) -> bool:
        """Whether the stop has begun."""
        return self._stopping.begun

    @property
    def cause(self) -> str:
        """Why the stop began, in one line, with who asked for it: for logs, not for clients."""
        return self._process.life.cause

    @property
    def brief(self) -> str:
        """The cause without the sender and without errors, for everybody; empty until it begins."""
        return self._process.life.brief

    @property
    def code(self) -> ExitCode:
        """The exit code, as far as it is known by now."""
        return self._process.life.code

    @property
    def abandoned(self) -> tuple[str, ...]:
        """What did not end when it was told to. With any of it a loop may not close by itself."""
        return tuple(self._process.abandoned)

    # -- what it is made of ----------------------------------------------------------------------

    def add(
        self,
        name: str,
        component: Component | None = None,
        *,
        start: Step | None = None,
        stop: Stop | None = None,
        run: Worker | None = None,
        needs: Iterable[str] | None = None,
        serves: bool | None = None,
    ) -> None:
        """Add a component: an object, functions that start and stop it, or one that is its work.

        Args:
            name: for records, and for those who need it.
            component: an object; see `holdfast.ports.component`.
            start: plain or coroutine function; it is up when this returns.
            stop: the same; is given the deadline if it takes a positional argument.
            run: coroutine function whose task is the work. It is cancelled at the stop; with `stop`
                that is called first, and the task has until the deadline to end by itself.
            needs: what has to be up before, and is stopped after it. By default all that was added
                before; with `()` nothing.
            serves: whether work comes from it (a server, a consumer), so that its stop is a part of
                the drain. What does not serve, and needs nothing that does, is stopped after the
                hooks. By default true for objects and `run`, false for pairs of functions.

        Raises:
            UsageError: the host has started, the name is taken, or the arguments contradict.
        """
        self._only_before_start(f"component '{name}' comes too late")
        parts = self._process.parts
        if not name or name in parts:
            raise UsageError(f"a component needs a name of its own, got {name!r}")
        wanted = tuple(parts) if needs is None else tuple(needs)
        parts[name] = part_of(name, component, start, stop, run, wanted, serves)

    def pool(self, name: str, pool: Pool) -> None:
        """Have `pool` close what is idle as soon as the stop begins."""
        self._stopping.pools[name] = pool

    def on_stop(self, callback: Callable[[], Any], *, name: str = "") -> None:
        """Call a plain or coroutine function when the stop begins, before anything is stopped."""
        self._stopping.hooks.append(Hook(name or name_of(callback), callback))

    def at_exit(self, callback: Callable[[], Any], *, name: str = "") -> None:
        """Call a plain or coroutine function when all work is over; the last one comes first.

        Components that serve are gone by then, the others are still up.
        """
        self._exit_hooks.append(Hook(name or name_of(callback), callback))

    def on_reload(self, callback: Callable[[], Any]) -> None:
        """Call a plain or coroutine function when the configuration is to be read again.

        It must leave everything as it is when it raises; what follows it is not called then.
        """
        self._audit.reloads.append(callback)

    @property
    def audit(self) -> Audit:
        """What is done about signals; `reload` and `dump` can be asked for by others as well."""
        return self._audit

    async def stop_begun(self) -> None:
        """Wait until the stop begins; from then on return at once."""
        await self._stopping.wait()

    # -- its life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; return when all is up, or when a stop that came meanwhile is over.

        Raises:
            ComponentFailed: something could not start; what had started is stopped again.
            ConfigError: something is needed that there is not, or needs go round in a circle.
            UsageError: the host was started before, or another one runs on this loop.
        """
        self._begin()
        process = self._process
        await patiently(process, lambda: process.phase is not Phase.INITIALIZING)
        if process.phase is Phase.RUNNING:
            return
        await self.ended()
        starting = self._starting
        if starting is not None and starting.failed is not None:
            name, error = starting.failed
            raise ComponentFailed(name, process.life.cause) from error

    async def run(self, signals: SignalSource | None = None) -> ExitCode:
        """Start, serve until a stop, stop; the exit code.

        When this is cancelled the process is stopped first, as `stop` does it; cancelled again, it
        is forced.

        Args:
            signals: what is done about them is in `domain.lifecycle.meaning`.

        Raises:
            ConfigError: something is needed that there is not, or needs go round in a circle.
            UsageError: the host was started before, or another one runs on this loop.
        """
        self._begin()
        if signals is not None:
            self._audit.listen(signals)
        return await self.ended()

    async def ended(self) -> ExitCode:
        """Wait until the process has stopped; the exit code.

        Raises:
            UsageError: the host was not started.
        """
        if self._life is None:
            raise UsageError("this host was not started")
        process = self._process
        await patiently(process, process.ended.done)
        return process.ended.result()

    def stop(self, detail: str = "", *, by: str = "the program") -> bool:
        """Ask the process to stop; false when it stops already, which changes nothing.

        To be called in the thread of the loop; from others by `loop.call_soon_threadsafe`.

        Raises:
            UsageError: the host was not started.
        """
        if self._life is None:
            raise UsageError("this host was not started, so there is nothing to stop")
        if self.stopping:
            return False
        self._process.post(StopAsked(by, detail))
        return True

    def force(self, detail: str = "", *, by: str = "the program") -> None:
        """Stop, and cut what is under way; once more, and clean-up is given up as well.

        Raises:
            UsageError: the host was not started.
        """
        self.stop(detail, by=by)
        self._process.post(StopAsked(by, detail or "force"))

    def cut(self) -> None:
        """The drain deadline is over, by the clock of somebody who drains."""
        self._process.limit_passed()

    # -- inside ----------------------------------------------------------------------------------

    def _only_before_start(self, what: str) -> None:
        if self._life is not None:
            raise UsageError(f"the host has started: {what}")

    def _not_ready(self) -> str:
        phase = self._process.phase
        return "" if self._process.ready else str(phase)

    def _begin(self) -> None:
        if self._life is not None:
            raise UsageError("this host was started before; make a new one")
        process = self._process
        order = waves({part.name: part.needs for part in process.parts.values()})
        driver = driver_of(asyncio.get_running_loop())
        process.begin(driver)
        driver.host = self
        self._starting = Starting(process, order)
        ending = Ending(process, order, self._starting.unwatch)
        self._life = driver.loop.create_task(
            self._live(self._starting, ending), name=f"host {self.name}".strip()
        )

    async def _live(self, starting: Starting, ending: Ending) -> None:
        AMBIENT.set(None)
        process = self._process
        try:
            await starting.start_all()
            while not process.phase.stopping:
                await process.pause(NEVER)
            self._stopping.announce()
            await self._stopping.tell()
            await ending.negotiate()
            process.post(Negotiated())
            process.post(Drained(await ending.drain()))
            await self._stopping.pools_clean()
            process.post(CleanedUp(await ending.clean_up(self._exit_hooks)))
        finally:
            self._audit.close()
            if not process.ended.done():
                self._torn_down()

    def _torn_down(self) -> None:
        # The loop is being closed around us, or there is an error of ours: whoever waits must not
        # wait for ever.
        process = self._process
        _log.error("the host ended before its process had stopped; see above")
        process.driver.close_root(Outcome.FAILED)
        process.driver.host = None
        process.record("process.ended", "torn down", cause=process.life.cause)
        process.ended.cancel()
        process.wake()


def current() -> Host:
    """The host that runs on the present loop.

    Raises:
        UsageError: there is none, or no loop.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError("there is no host in this thread; keep the object and use that") from None
    host = driver_of(loop).host
    if not isinstance(host, Host):
        raise UsageError(
            "no host runs on this loop; start the program with `holdfast serve` or `holdfast run`, "
            "or make a holdfast.lifecycle.Host and await its run()"
        )
    return host
