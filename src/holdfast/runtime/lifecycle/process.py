"""What the parts of a host share: the state of the process, and what is done at once.

The machine of `domain.lifecycle.phase` decides; here every decision that needs no waiting is
performed, and recorded. What has to be waited for is in `starting` and `ending`.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import UsageError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.lifecycle.phase import (
    Abandon,
    CleanUp,
    CutNow,
    Decision,
    Entered,
    Event,
    Exit,
    ExitCode,
    GiveUpStart,
    Life,
    Lifecycle,
    LimitPassed,
    Phase,
    SetReady,
    TellStop,
)
from holdfast.domain.tree import Node
from holdfast.ports.component import Hurried
from holdfast.runtime.delivery import stack_of
from holdfast.runtime.driver import Driver
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.lifecycle.journal import Journal
from holdfast.runtime.lifecycle.parts import Part, Standing
from holdfast.runtime.lifecycle.shelter import Shelter, why
from holdfast.runtime.lifecycle.snapshot import snapshot
from holdfast.runtime.lifecycle.terms import HostTerms
from holdfast.runtime.scope import AMBIENT, Scope
from holdfast.runtime.timers import Alarm

__all__ = ["Process"]

_TO_EXIT: Final[Duration] = 0.25
"""Seconds of the reserve in which nothing is waited for any more: who is late is noticed, the last
records are written, and the platform does not have to kill."""
_MOST_KEPT: Final = 0.25
"""The most that this may be of a reserve that is small."""

_MOST_NAMED: Final = 100
"""Pieces of work that one record names; the rest is counted."""


class Process:
    """One process, as its host knows it.

    Attributes:
        name: of the service.
        terms: the times; fixed when the host starts.
        journal: where everything is written.
        requests: what was served, counted by whoever serves.
        parts: the components, in the order in which they were added.
        life: the state of the machine.
        ready: whether the process says that it is.
        driver: of the loop; none before the start.
        context: variables that everything runs with which the host starts.
        starting: the scopes of components that come up now.
        waiting: scopes whose task waits for the end of the process, which none of it cuts short.
        cut: what was cancelled because the drain was over.
        abandoned: what did not end when it was told to, by name.
        clean_until: instant by which clean-up has to be over; infinite before it begins.
        gave_up_at: instant at which clean-up was given up; infinite when it was not.
        shelters: what the host itself does now.
        ended: has the exit code when the process is over.
    """

    driver: Driver
    ended: asyncio.Future[ExitCode]

    def __init__(self, name: str, terms: HostTerms, journal: Journal, requests: Counter[str]):
        self.name = name
        self.terms = terms
        self.journal = journal
        self.requests = requests
        self.parts: dict[str, Part] = {}
        self.life = Life()
        self.ready = False
        self.context = contextvars.Context()
        self.shelters: dict[Shelter, asyncio.Task[Any]] = {}
        self.starting: set[Scope] = set()
        self.waiting: set[HostedNode] = set()
        self.abandoned: list[str] = []
        self.clean_until: Instant = NEVER
        self.gave_up_at: Instant = NEVER
        self.cut_count = 0
        self.began: Instant = 0.0
        self._machine = Lifecycle()
        self._wakers: set[asyncio.Future[None]] = set()
        self._alarm: Alarm | None = None
        self.cut: tuple[Node, ...] = ()

    # -- the machine -----------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the process is in its life."""
        return self.life.phase

    def begin(self, driver: Driver) -> None:
        """Come to life on the loop of `driver`."""
        if driver.root.outcome is not None:
            driver.fresh_root()
        if driver.host is not None:
            raise UsageError("another host runs on this loop; add its components to that one")
        self.driver = driver
        self.began = driver.now()
        self.journal.now = driver.now
        self.context = contextvars.copy_context()
        self.context.run(AMBIENT.set, None)
        self.ended = driver.loop.create_future()
        terms = self.terms
        self._machine = Lifecycle(terms.drain, terms.cleanup, terms.hurried)
        self.record("process.started", self.name, data={"pid": os.getpid()})
        self.life, decisions = self._machine.begin(driver.now())
        self._perform_all(decisions)

    def post(self, event: Event) -> None:
        """Something happened: decide, and do what can be done at once."""
        if self.ended.done():
            return
        self.life, decisions = self._machine.step(self.life, event, self.driver.now())
        self._perform_all(decisions)
        self.wake()

    def _perform_all(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            self._perform(decision)

    def _perform(self, decision: Decision) -> None:
        match decision:
            case Entered(phase, at, cause):
                self.record("phase.entered", str(phase), cause=cause, at=at)
            case SetReady(ready):
                self._set_ready(ready)
            case GiveUpStart():
                self._give_up_start()
            case TellStop(until, end):
                self._begin_stop(until, end)
            case CutNow(end):
                self._cut_work(end)
            case CleanUp(until):
                kept = min(_TO_EXIT, self.terms.cleanup * _MOST_KEPT)
                self.clean_until = min(until, self.life.end - kept)
            case Abandon():
                self._abandon()
            case Exit():
                self._exit(decision)
            case _:
                pass  # what has to be waited for

    def _set_ready(self, ready: bool) -> None:
        self.ready = ready
        self.record("ready.changed", "ready" if ready else "unready", data={"ready": ready})

    def _give_up_start(self) -> None:
        for scope in tuple(self.starting):
            self.driver.begin(scope, scope.cause_of(CauseKind.SHUTDOWN, self.driver.now()))

    def _begin_stop(self, until: Instant, end: Instant) -> None:
        now = self.driver.now()
        self.record(
            "stop.begun",
            detail=f"work has {format_duration(until - now)}, clean-up "
            f"{format_duration(end - until)} more",
            cause=self.life.cause,
            data={"until": until, "end": end, "drain_s": until - now, "cleanup_s": end - until},
        )
        self.driver.bound_root(until, end - until)
        self.driver.overdue = self.limit_passed
        self._alarm = self.driver.alarm(until, self.limit_passed)

    def foresee(self, event: Event) -> Phase:
        """The phase that an event would lead to."""
        return self._machine.step(self.life, event, self.driver.now())[0].phase

    def limit_passed(self) -> None:
        """The drain deadline is over."""
        self.post(LimitPassed())

    def work_is_over(self) -> None:
        """Nothing is left that the drain deadline could cut."""
        self.driver.overdue = None
        if self._alarm is not None:
            self.driver.drop(self._alarm)

    # -- cutting ---------------------------------------------------------------------------------

    def cause(self, detail: str = "") -> Cause:
        """Why work is cancelled that the stop does not wait for; clients are told, so in brief."""
        now = self.driver.now()
        root = self.driver.root
        budget = root.limit - self.life.entered_at
        text = "; ".join(part for part in (self.life.brief, detail) if part)
        return Cause(
            CauseKind.SHUTDOWN, "process", self.name, now, budget, now - self.life.entered_at, text
        )

    def _cut_work(self, end: Instant) -> None:
        now = self.driver.now()
        self.work_is_over()
        self.driver.bound_root(min(self.driver.root.limit, now), max(0.0, end - now))
        how = "told again" if self.life.forced else "the drain deadline has passed"
        cut = self.cancel_rest(how)
        self.cut_count += len(cut)
        self.cut = cut
        names = [_describe(node, now) for node in cut[:_MOST_NAMED]]
        self.record(
            "drain.cut",
            str(len(cut)),
            detail="; ".join(str(each["scope"]) for each in names),
            cause=how,
            data={"cut": len(cut), "work": names, "forced": self.life.forced},
        )
        for shelter in tuple(self.shelters):
            shelter.end_by(self.unwound())
        for part in self.parts.values():
            if part.standing is Standing.STOPPING or part.standing is Standing.UP:
                self._hurry(part)

    def unwound(self) -> Instant:
        """Instant by which what was cut has to be gone: half of what clean-up has, at most."""
        life = self.life
        return life.until + min(self.terms.unwinding, (life.end - life.until) / 2)

    def cancel_rest(self, how: str) -> tuple[Node, ...]:
        """Cancel all that is open and in no shelter, but for those who wait for the end of it."""
        for node in self.waiting:
            node.deaf = True
        above = self.waiting_or_above()
        cut = self.driver.cancel_root(self.cause(how), self.waiting)
        return tuple(node for node in cut if node not in above)

    def waiting_or_above(self) -> set[Node]:
        """Scopes that cannot close before the process has ended: somebody in them waits for it."""
        found: set[Node] = set()
        for scope in self.waiting:
            node: Node | None = scope
            while node is not None and node not in found:
                found.add(node)
                node = node.parent
        return found

    def _hurry(self, part: Part) -> None:
        if isinstance(part.component, Hurried):
            try:
                part.component.hurry()
            except Exception as error:
                self.record("component.failed", part.name, f"hurry: {why(error)}")

    def _abandon(self) -> None:
        self.gave_up_at = self.driver.now()
        for shelter in tuple(self.shelters):
            shelter.end_by(self.gave_up_at)

    def shelter(self, task: asyncio.Task[Any], shelter: Shelter) -> None:
        """Work of the host itself is under way in `shelter`: what ends the process bounds it."""
        self.shelters[shelter] = task
        task.add_done_callback(lambda _: self.shelters.pop(shelter, None))
        task.add_done_callback(_looked_at)

    # -- the end ---------------------------------------------------------------------------------

    def _exit(self, decision: Exit) -> None:
        driver = self.driver
        code = decision.code
        self.cancel_rest("the process has stopped")
        self.record("process.snapshot", self.name, data=snapshot(driver, self.requests, self.began))
        driver.close_root(decision.outcome)
        self.record(
            "process.ended",
            code.name.lower(),
            detail=f"exit code {int(code)}",
            cause=self.life.cause,
            data={
                "code": int(code),
                "outcome": str(decision.outcome),
                "cut": self.cut_count,
                "abandoned": list(self.abandoned),
            },
        )
        driver.host = None
        if not self.ended.done():
            self.ended.set_result(code)

    # -- records and waiting ---------------------------------------------------------------------

    def record(
        self,
        kind: str,
        subject: str = "",
        detail: str = "",
        *,
        cause: str = "",
        at: Instant | None = None,
        data: Mapping[str, object] | None = None,
    ) -> None:
        """Write one record."""
        self.journal.write(kind, subject, detail, cause=cause, at=at, data=data)

    def wake(self) -> None:
        """Whoever waits in `pause` or `until_done` looks again."""
        for waker in tuple(self._wakers):
            _answer(waker)

    async def pause(self, until: Instant) -> None:
        """Wait for the next event, or for `until`."""
        await self._sleep(self.driver.loop.create_future(), until)

    async def _sleep(self, waker: asyncio.Future[None], until: Instant) -> None:
        self._wakers.add(waker)
        alarm = None
        if until != NEVER:
            alarm = self.driver.alarm(until, partial(_answer, waker))
        try:
            await waker
        finally:
            self._wakers.discard(waker)
            if alarm is not None:
                self.driver.drop(alarm)

    async def until_done(
        self, tasks: Collection[asyncio.Task[Any]], bound: Callable[[], Instant]
    ) -> set[asyncio.Task[Any]]:
        """Wait until all are done, or `bound()`, which is asked anew at each event; who is not."""
        left = {task for task in tasks if not task.done()}
        waker: asyncio.Future[None] | None = None

        def one_less(task: asyncio.Task[Any]) -> None:
            left.discard(task)
            if not left and waker is not None:
                _answer(waker)

        for task in tuple(left):
            task.add_done_callback(one_less)
        try:
            while left and (at := bound()) > self.driver.now():
                waker = self.driver.loop.create_future()
                await self._sleep(waker, at)
        finally:
            for task in tuple(left):
                task.remove_done_callback(one_less)
        return left

    def left(self, until: Instant) -> Duration:
        """Seconds until `until`; never negative."""
        return max(0.0, until - self.driver.now())


def _answer(waker: asyncio.Future[None]) -> None:
    if not waker.done():
        waker.set_result(None)


def _looked_at(task: asyncio.Task[Any]) -> None:
    # What fails in a shelter is recorded by whoever opened it; asyncio need not tell of it again.
    if not task.cancelled():
        task.exception()


def _describe(node: Node, now: Instant) -> dict[str, object]:
    """One piece of work, for the record that names it."""
    found: dict[str, object] = {
        "scope": node.path,
        "age_s": round(now - node.opened_at, 6),
        "origin": node.origin,
    }
    if isinstance(node, HostedNode):
        identity = node.carried.identity
        if identity.request_id:
            found["request_id"] = identity.request_id
        if node.task is not None:
            found["task"] = node.task.get_name()
            waits = stack_of(node.task)
            found["waits"] = waits[-1] if waits else ""
    return found
