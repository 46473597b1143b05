"""The components of a host, in whatever form they were added."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any, TypeAlias

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import ScopeEnded, UsageError
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.ports.component import Component
from holdfast.runtime.driver import driver_of
from holdfast.runtime.lifecycle.shelter import call
from holdfast.runtime.scope import Scope
from holdfast.runtime.tasks import spawn

__all__ = ["Pair", "Part", "Standing", "Step", "Stop", "Work", "Worker", "part_of"]

Step: TypeAlias = Callable[[], object] | Callable[[], Awaitable[object]]
"""A plain or coroutine function without arguments."""

Stop: TypeAlias = Step | Callable[[Instant], object] | Callable[[Instant], Awaitable[object]]
"""As `Step`, or one that takes the deadline."""

Worker: TypeAlias = Callable[[], Coroutine[Any, Any, object]]
"""A coroutine function that works until it is cancelled."""


class Standing(StrEnum):
    """How it stands with a component."""

    ADDED = "added"
    STARTING = "starting"
    UP = "up"
    DEAD = "dead"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Part:
    """One component.

    Attributes:
        name: what it was added as.
        component: what is started and stopped.
        needs: names of what has to be up before it.
        serves: whether work comes from it, so that its stop is a part of the drain.
        watched: whether it can end by itself.
        standing: how it stands with it.
        was_up: whether it has started, so that it has to be stopped.
        forced: why it did not acknowledge the stop; empty when it did.
    """

    def __init__(
        self, name: str, component: Component, needs: tuple[str, ...], *, serves: bool
    ) -> None:
        self.name = name
        self.component = component
        self.needs = needs
        self.serves = serves
        self.watched = type(component) is not Pair
        self.standing = Standing.ADDED
        self.was_up = False
        self.forced = ""


class Pair:
    """A component of two functions, for what never ends by itself."""

    def __init__(self, start: Step | None, stop: Stop | None) -> None:
        self._start = start
        self._stop = stop

    async def start(self) -> None:
        """See `Component`."""
        if self._start is not None:
            await call(self._start)

    async def prepare(self, request: ShutdownRequest) -> None:
        """There is nothing to prepare."""

    async def stop(self, deadline: Instant) -> None:
        """See `Component`."""
        if self._stop is not None:
            await call(self._stop, *((deadline,) if _takes_one(self._stop) else ()))

    async def wait(self) -> None:
        """It does not end by itself."""
        await asyncio.get_running_loop().create_future()


class Work(Pair):
    """A component whose task is the work.

    Its stop cancels the task, with the cause `shutdown`. Where a function for the stop was given,
    that comes first, and the task has until the deadline to end by itself.
    """

    def __init__(self, name: str, run: Worker, start: Step | None, stop: Stop | None) -> None:
        super().__init__(start, stop)
        self._name = name
        self._run = run
        self._task: asyncio.Task[object] | None = None
        self._scope: Scope | None = None

    async def start(self) -> None:
        """See `Component`."""
        await super().start()
        driver = driver_of(asyncio.get_running_loop())
        self._task, self._scope = spawn(
            self._run(), name=self._name, parent=driver.root, driver=driver, inside=True
        )
        self._scope.bounds = True
        driver.kept.add(self._task)
        self._task.add_done_callback(driver.kept.discard)
        self._task.add_done_callback(_looked_at)

    async def stop(self, deadline: Instant) -> None:
        """See `Component`."""
        try:
            if self._stop is not None:
                await super().stop(deadline)
                await self._ended(deadline)
        finally:
            await self._cancel()

    async def wait(self) -> None:
        """Return or raise as the task does."""
        assert self._task is not None
        await asyncio.wait([self._task])
        if self._task.cancelled():
            raise asyncio.CancelledError("the task was cancelled from outside")
        if (error := self._task.exception()) is not None:
            raise error

    async def _ended(self, deadline: Instant) -> None:
        task, scope = self._task, self._scope
        if task is not None and scope is not None and not task.done():
            left = max(0.0, deadline - scope.driver.now())
            await asyncio.wait([task], timeout=left)

    async def _cancel(self) -> None:
        task, scope = self._task, self._scope
        if task is None or scope is None or task.done():
            return
        now = scope.driver.now()
        hop = scope.hop
        cause = Cause(CauseKind.SHUTDOWN, scope.path, hop, now, scope.budget, now - scope.opened_at)
        scope.driver.begin(scope, cause)
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ScopeEnded):
            raise error


def _looked_at(task: asyncio.Task[object]) -> None:
    # Whoever watches or stops it tells of the error; asyncio need not.
    if not task.cancelled():
        task.exception()


def _takes_one(function: Callable[..., object]) -> bool:
    """Whether it wants the deadline: what it can do without may be something else."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function in C that does not tell
        return False
    for each in parameters:
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD):
            return each.default is each.empty or each.name == "deadline"
    return False


def part_of(
    name: str,
    component: Component | None,
    start: Step | None,
    stop: Stop | None,
    run: Worker | None,
    needs: tuple[str, ...],
    serves: bool | None,
) -> Part:
    """The part that the arguments of `Host.add` describe.

    Raises:
        UsageError: they contradict one another.
    """
    if component is not None:
        if start is not None or stop is not None or run is not None:
            raise UsageError(f"component '{name}' is an object or made of functions, not both")
        return Part(name, component, needs, serves=serves is not False)
    if run is not None:
        if not inspect.iscoroutinefunction(run) and inspect.iscoroutine(run):
            run.close()
            raise UsageError(f"component '{name}': give run= the function, not run()")
        if serves is False:
            raise UsageError(f"component '{name}' is work, so its stop is a part of the drain")
        return Part(name, Work(name, run, start, stop), needs, serves=True)
    if start is None and stop is None:
        raise UsageError(f"component '{name}' needs an object, or start=, stop= or run=")
    return Part(name, Pair(start, stop), needs, serves=serves is True)
