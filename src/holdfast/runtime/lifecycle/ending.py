"""How a process stops: ask, let work end, clean up. Each step is bounded, and goes on after errors.

ask       components prepare, those first that need others (`domain.lifecycle.negotiation`)
drain     the sources of work stop, and what stands on them; then detached work that came from
          requests is waited for
clean up  background work is cancelled; the hooks run, last registered first; then the rest of
          the components stops, those first that need others
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.lifecycle.negotiation import (
    Acknowledged,
    Ask,
    Event,
    Failed,
    Forced,
    GivenUp,
    LookAt,
    Looked,
    Negotiation,
    Over,
    ShutdownRequest,
)
from holdfast.domain.lifecycle.order import above
from holdfast.domain.tree import Node
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.lifecycle.parts import Part, Standing
from holdfast.runtime.lifecycle.process import Process
from holdfast.runtime.lifecycle.shelter import Shelter, call, sheltered, why
from holdfast.runtime.lifecycle.stopping import Hook

__all__ = ["Ending"]

_LATE: Final[Duration] = 0.1
"""Seconds that a task which was cancelled may need to be seen as done."""


class Ending:
    """The stop of one process."""

    def __init__(
        self,
        process: Process,
        waves: tuple[tuple[str, ...], ...],
        unwatch: Callable[[Part], None],
    ) -> None:
        self._process = process
        self._waves = tuple(reversed(waves))
        self._unwatch = unwatch
        self._asked: dict[str, Shelter] = {}

    # -- ask -------------------------------------------------------------------------------------

    async def negotiate(self) -> None:
        """Ask everybody who is up to prepare; returns when all have answered or are forced."""
        process = self._process
        now = process.driver.now
        machine = Negotiation(process.terms.acknowledge)
        waves = [[name for name in wave if self._is_up(name)] for wave in self._waves]
        talks, decisions = machine.begin(waves, process.life.until, now())
        answers: deque[Event] = deque()
        look_at = process.life.until
        while True:
            for decision in decisions:
                match decision:
                    case Ask(name, deadline):
                        self._ask(process.parts[name], deadline, answers)
                    case LookAt(at):
                        look_at = at
                    case Forced(name, reason, asked):
                        self._force(process.parts[name], reason, asked)
                    case Over():
                        return
            if process.life.cutting:
                answers.append(GivenUp())
            elif not answers:
                await process.pause(look_at)
                if not answers and look_at <= now():
                    answers.append(Looked())
            decisions = ()
            if answers:
                talks, decisions = machine.step(talks, answers.popleft(), now())

    def _is_up(self, name: str) -> bool:
        return self._process.parts[name].standing is Standing.UP

    def _ask(self, part: Part, deadline: Instant, answers: deque[Event]) -> None:
        process = self._process
        began = process.driver.now()
        request = ShutdownRequest(part.name, process.life.until, process.cause(), deadline)
        process.record(
            "shutdown.requested", part.name, data={"answer_by_s": round(deadline - began, 6)}
        )

        def answered(task: asyncio.Task[None]) -> None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                seconds = round(process.driver.now() - began, 6)
                process.record("shutdown.acknowledged", part.name, data={"seconds": seconds})
                answers.append(Acknowledged(part.name))
            elif not isinstance(error, ScopeEnded) or error.cause is not shelter.cause:
                answers.append(Failed(part.name, why(error)))
            process.wake()

        task, shelter = sheltered(
            lambda: part.component.prepare(request),
            name=f"prepare {part.name}",
            driver=process.driver,
            until=deadline,
            context=process.context,
        )
        process.shelter(task, shelter)
        self._asked[part.name] = shelter
        task.add_done_callback(answered)

    def _force(self, part: Part, reason: str, asked: bool) -> None:
        part.forced = reason
        if asked:
            self._asked[part.name].end_by(self._process.driver.now())
        self._process.record(
            "shutdown.unanswered", part.name, reason, data={"asked": asked, "forced": True}
        )

    # -- drain -----------------------------------------------------------------------------------

    async def drain(self) -> int:
        """Let work end; how much of it had to be cut."""
        process = self._process
        needs = {part.name: part.needs for part in process.parts.values()}
        sources = [part.name for part in process.parts.values() if part.serves]
        drained = above(sources, needs)
        for wave in self._waves:
            parts = [process.parts[name] for name in wave if name in drained]
            await self._stop(parts, lambda: process.life.until, process.unwound)
        await self._work_of_requests()
        process.work_is_over()
        return process.cut_count

    async def _work_of_requests(self) -> None:
        """Wait for what goes on after requests and has come from them; at the limit it is cut."""
        process = self._process
        driver = process.driver

        def bound() -> Instant:
            return process.unwound() if process.life.cutting else process.life.until

        while True:
            await process.until_done(driver.closing, bound)
            driver.settle()
            exempt = process.waiting_or_above()
            nodes = [n for n in driver.root.children or () if n.origin and n not in exempt]
            if not nodes and not driver.closing:
                break
            await self._closed(nodes, bound)
            if bound() <= driver.now():
                if process.life.cutting:
                    break
                process.limit_passed()  # its alarm is due at this very instant
        if left := await self._closed(process.cut, process.unwound):
            self._give_up(left)

    def _give_up(self, nodes: Iterable[Node]) -> None:
        names = [node.path for node in nodes]
        self._process.abandoned += names
        detail = f"{len(names)} were told to end and did not"
        self._process.record("drain.step", "abandoned", detail, data={"work": names[:100]})

    async def _closed(
        self, nodes: Sequence[Node], bound: Callable[[], Instant]
    ) -> list[HostedNode]:
        """Wait until the scopes have closed; those that have not by `bound`."""
        process = self._process
        exempt = process.waiting_or_above()
        left = {
            node
            for node in nodes
            if isinstance(node, HostedNode) and node.outcome is None and node not in exempt
        }

        def closed(node: HostedNode) -> None:
            left.discard(node)
            if not left:
                process.wake()

        for node in left:
            node.closers = [*(node.closers or ()), closed]
        while left and (at := bound()) > process.driver.now():
            await process.pause(at)
        for node in left:
            if node.closers is not None:
                node.closers.remove(closed)
        return list(left)

    # -- components ------------------------------------------------------------------------------

    async def _stop(
        self,
        parts: Iterable[Part],
        deadline: Callable[[], Instant],
        bound: Callable[[], Instant],
    ) -> int:
        """Stop those that are up, all at once; how many did not end by `bound`."""
        process = self._process
        now = process.driver.now()
        tasks: dict[asyncio.Task[None], Part] = {}
        late: list[Part] = []
        for part in parts:
            if not _is_to_stop(part):
                continue
            part.standing = Standing.STOPPING
            self._unwatch(part)
            moment = min(process.terms.moment, max(0.0, bound() - now))
            due = now if part.forced else deadline()
            task, shelter = sheltered(
                partial(part.component.stop, due),
                name=f"stop {part.name}",
                driver=process.driver,
                until=now + moment if part.forced else bound(),
                context=process.context,
            )
            process.shelter(task, shelter)
            tasks[task] = part
            task.add_done_callback(partial(self._stopped, part, now, late))
        for task in await process.until_done(tasks, lambda: bound() + _LATE):
            part = tasks[task]
            late.append(part)
            process.abandoned.append(f"stop {part.name}")
            process.record("component.forced", part.name, "did not end when told to; left behind")
        return len(late)

    def _stopped(
        self, part: Part, began: Instant, late: list[Part], task: asyncio.Task[None]
    ) -> None:
        process = self._process
        part.standing = Standing.STOPPED
        seconds = round(process.driver.now() - began, 6)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            detail = f"forced: {part.forced}" if part.forced else ""
            process.record("component.stopped", part.name, detail, data={"seconds": seconds})
        elif isinstance(error, ScopeEnded | asyncio.CancelledError):
            late.append(part)
            detail = f"its stop was not done in time ({why(error)})"
            process.record("component.forced", part.name, detail, data={"seconds": seconds})
        else:
            detail = f"stop: {why(error)}"
            process.record("component.failed", part.name, detail, data={"seconds": seconds})

    # -- clean up --------------------------------------------------------------------------------

    async def clean_up(self, hooks: Sequence[Hook]) -> int:
        """Hooks, and what is stopped after the work; how many parts of it were given up."""
        process = self._process
        late = await self._end_background()
        parts = [[process.parts[name] for name in wave] for wave in self._waves]
        waves = [wave for wave in parts if any(map(_is_to_stop, wave))]
        steps = len(hooks) + len(waves)
        for hook in reversed(hooks):
            late += await self._run_hook(hook, self._share(steps))
            steps -= 1
        for wave in waves:
            until = self._share(steps)
            late += await self._stop(wave, partial(self._by, until), partial(self._by, until))
            steps -= 1
        await self._end_the_rest()
        return late

    async def _end_the_rest(self) -> None:
        """Nothing of the host's own is left: what was forced may still be on its way out."""
        process = self._process
        now = process.driver.now()
        for shelter in tuple(process.shelters):
            shelter.end_by(now)
        left = await process.until_done(process.shelters.values(), lambda: now + _LATE)
        names = [task.get_name() for task in left]
        process.abandoned += [name for name in names if name not in process.abandoned]

    def _by(self, until: Instant) -> Instant:
        return min(until, self._process.gave_up_at)

    def _share(self, steps: int) -> Instant:
        """End of the next of `steps` that have to share what is left."""
        process = self._process
        now = process.driver.now()
        return now if process.life.abandoned else now + process.left(process.clean_until) / steps

    async def _end_background(self) -> int:
        process = self._process
        now = process.driver.now()
        until = now + min(process.terms.moment, process.left(process.clean_until) / 2)
        nodes = process.cancel_rest("the work is over")
        if nodes:
            names = [node.path for node in nodes]
            detail = f"{len(names)} cancelled"
            process.record("drain.step", "background", detail, data={"work": names[:100]})
        left = await self._closed(nodes, lambda: self._by(until))
        # What requests left to be done at their end: also of those that have just been cancelled.
        await process.until_done(process.driver.closing, lambda: self._by(until))
        now = process.driver.now()
        late = [n for n in process.driver.root.children or () if isinstance(n, Shelter)]
        late = [shelter for shelter in late if shelter.origin]
        for shelter in late:
            shelter.end_by(now)
        left += await self._closed(late, lambda: now + _LATE)
        if left:
            self._give_up(left)
        return len(left)

    async def _run_hook(self, hook: Hook, until: Instant) -> int:
        process = self._process
        began = process.driver.now()
        if process.life.abandoned:
            process.record("hook.failed", hook.name, "not run: clean-up was given up")
            return 1
        task, shelter = sheltered(
            lambda: call(hook.call),
            name=f"at_exit {hook.name}",
            driver=process.driver,
            until=until,
            context=process.context,
        )
        process.shelter(task, shelter)
        left: set[asyncio.Task[Any]] = await process.until_done(
            [task], lambda: self._by(until) + _LATE
        )
        seconds = round(process.driver.now() - began, 6)
        data = {"seconds": seconds, "when": "exit"}
        if left:
            process.abandoned.append(f"at_exit {hook.name}")
            process.record("hook.failed", hook.name, "did not end when told to", data=data)
            return 1
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            process.record("hook.done", hook.name, data=data)
            return 0
        if isinstance(error, ScopeEnded | asyncio.CancelledError):
            process.record("hook.failed", hook.name, "was not done in time", data=data)
            return 1
        process.record("hook.failed", hook.name, why(error), data=data)
        return 0


def _is_to_stop(part: Part) -> bool:
    """Whether it has started, also if it died since, and was not told to stop."""
    return part.was_up and part.standing in (Standing.UP, Standing.DEAD)
