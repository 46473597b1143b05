"""The event "the stop has begun", for applications: it comes before anything else is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from holdfast.domain.instant import Instant
from holdfast.ports.pool import Pool
from holdfast.runtime.lifecycle.process import Process
from holdfast.runtime.lifecycle.shelter import Shelter, call, sheltered, why

__all__ = ["Hook", "Stopping"]


class Hook(NamedTuple):
    """A function that was registered, and its name for people."""

    name: str
    call: Callable[[], Any]


class Stopping:
    """Who wants to know that the stop has begun.

    Attributes:
        hooks: are called then, all of them at once.
        pools: by name; are told to let go of what is idle.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.hooks: list[Hook] = []
        self.pools: dict[str, Pool] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._shelters: dict[asyncio.Task[None], Shelter] = {}
        self._cleaning: list[asyncio.Task[None]] = []

    @property
    def begun(self) -> bool:
        """Whether the stop has begun."""
        return self._process.phase.stopping

    async def wait(self) -> None:
        """Wait until the stop begins; from then on return at once."""
        if self.begun:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def announce(self) -> None:
        """The stop has begun."""
        for waiter in tuple(self._waiting):
            if not waiter.done():
                waiter.set_result(None)

    async def tell(self) -> None:
        """Call the hooks, and wait for them, bounded. Pools are cleaned meanwhile."""
        process = self._process
        now = process.driver.now()
        until = min(now + process.terms.tell, process.life.until)
        pools = min(now + process.terms.tell + process.terms.acknowledge, process.life.until)
        for name, pool in self.pools.items():
            self._cleaning.append(self._run(partial(self._clean, name, pool), name, pools))
        tasks = [self._run(partial(self._told, hook), hook.name, until) for hook in self.hooks]
        left = await process.until_done(tasks, lambda: min(until, process.life.until))
        for task in left:
            self._shelters[task].end_by(process.driver.now())

    def _run(self, work: Callable[[], Any], name: str, until: Instant) -> asyncio.Task[None]:
        process = self._process
        task, shelter = sheltered(
            work,
            name=f"on_stop {name}",
            driver=process.driver,
            until=until,
            context=process.context,
        )
        process.shelter(task, shelter)
        self._shelters[task] = shelter
        return task

    async def _told(self, hook: Hook) -> None:
        process = self._process
        began = process.driver.now()
        try:
            await call(hook.call)
        except BaseException as error:
            late = isinstance(error, asyncio.CancelledError)
            detail = "was not done in time" if late else why(error)
            process.record("hook.failed", hook.name, detail, data={"when": "stop begun"})
            if late:
                raise
        else:
            seconds = round(process.driver.now() - began, 6)
            process.record("hook.done", hook.name, data={"seconds": seconds, "when": "stop begun"})

    async def _clean(self, name: str, pool: Pool) -> None:
        process = self._process
        began = process.driver.now()
        idle = process.terms.idle
        try:
            closed = await pool.preclean(idle)
        except BaseException as error:
            late = isinstance(error, asyncio.CancelledError)
            detail = "was not done in time" if late else why(error)
            process.record("pool.cleaned", name, detail, data={"closed": None, "failed": True})
            if late:
                raise
        else:
            seconds = round(process.driver.now() - began, 6)
            detail = f"{closed} idle connections closed"
            process.record(
                "pool.cleaned", name, detail, data={"closed": closed, "seconds": seconds}
            )

    async def pools_clean(self) -> None:
        """Wait for the pools, which are bounded."""
        until = self._process.life.until
        await self._process.until_done(self._cleaning, lambda: min(until, self._process.life.until))
