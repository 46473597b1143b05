"""How the components of a host come up, and who notices when one of them dies."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.phase import Died, Phase, Started, StartFailed
from holdfast.runtime.lifecycle.parts import Part, Standing
from holdfast.runtime.lifecycle.process import Process
from holdfast.runtime.lifecycle.shelter import why
from holdfast.runtime.scope import AMBIENT, Scope
from holdfast.runtime.tasks import spawn

__all__ = ["Starting"]

_LATE: Final[Duration] = 0.1


class Starting:
    """Starts wave by wave, until all are up, one fails, or a stop is asked for."""

    def __init__(self, process: Process, waves: tuple[tuple[str, ...], ...]) -> None:
        self._process = process
        self._waves = waves
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self.failed: tuple[str, BaseException | None] | None = None
        """The first component that failed to start, with its error."""

    async def start_all(self) -> None:
        """Bring the process to `running`, or tell it why not."""
        process = self._process
        until = process.driver.now() + process.terms.start
        for wave in self._waves:
            if process.phase is not Phase.INITIALIZING:
                return
            await self._start([process.parts[name] for name in wave], until)
        if process.phase is Phase.INITIALIZING:
            process.post(Started())

    async def _start(self, parts: list[Part], until: Instant) -> None:
        process = self._process
        tasks: dict[asyncio.Task[None], Part] = {}
        for part in parts:
            began = process.driver.now()
            part.standing = Standing.STARTING
            task, scope = spawn(
                _alone(part),
                name=f"start {part.name}",
                parent=process.driver.root,
                driver=process.driver,
                seconds=max(1e-9, until - began),
                inside=True,
            )
            process.starting.add(scope)
            tasks[task] = part
            task.add_done_callback(partial(self._done, part, scope, began))

        def bound() -> Instant:
            moment = process.terms.moment + _LATE
            if process.phase is Phase.INITIALIZING:
                return until + moment
            return min(until, process.life.entered_at) + moment

        for task in await process.until_done(tasks, bound):
            self._gave_up(tasks[task])
            if process.phase is Phase.INITIALIZING:
                self._tell(tasks[task], None, "did not come up in time, nor end when told to")

    def _done(self, part: Part, scope: Scope, began: Instant, task: asyncio.Task[None]) -> None:
        process = self._process
        process.starting.discard(scope)
        seconds = round(process.driver.now() - began, 6)
        error: BaseException | None = (
            asyncio.CancelledError() if task.cancelled() else task.exception()
        )
        if error is None:
            part.standing = Standing.UP
            part.was_up = True
            process.record("component.started", part.name, data={"seconds": seconds})
            if part.watched:
                self._watch(part)
        elif process.phase is Phase.INITIALIZING:
            part.standing = Standing.DEAD
            self._tell(part, error, why(error))
        else:  # told to give up
            part.standing = Standing.DEAD
            process.record("component.failed", part.name, f"not up: {why(error)}")

    def _tell(self, part: Part, error: BaseException | None, reason: str) -> None:
        process = self._process
        part.standing = Standing.DEAD
        self.failed = (part.name, error)
        process.record("component.failed", part.name, f"cannot start: {reason}")
        process.post(StartFailed(part.name, reason))

    def _gave_up(self, part: Part) -> None:
        what = f"start {part.name}"
        self._process.abandoned.append(what)
        self._process.record("component.forced", part.name, "its start did not end when told to")

    # -- who dies --------------------------------------------------------------------------------

    def _watch(self, part: Part) -> None:
        process = self._process
        context = process.context.copy()
        watcher = process.driver.loop.create_task(
            part.component.wait(), name=f"watch {part.name}", context=context
        )
        self._watchers[part.name] = watcher
        watcher.add_done_callback(partial(self._ended, part))

    def _ended(self, part: Part, watcher: asyncio.Task[Any]) -> None:
        self._watchers.pop(part.name, None)
        error: BaseException | None = None
        if watcher.cancelled():
            error = asyncio.CancelledError("it was cancelled from outside")
        else:
            error = watcher.exception()
        if part.standing is not Standing.UP or self._process.ended.done():
            return
        part.standing = Standing.DEAD
        reason = "ended by itself" if error is None else why(error)
        process = self._process
        process.record("component.died", part.name, reason)
        process.post(Died(part.name, reason))

    def unwatch(self, part: Part) -> None:
        """It may end from now on."""
        if (watcher := self._watchers.pop(part.name, None)) is not None:
            watcher.cancel()


async def _alone(part: Part) -> None:
    # What is started here outlives the start, so it must not be born below its scope.
    AMBIENT.set(None)
    await part.component.start()
