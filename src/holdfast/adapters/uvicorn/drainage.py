"""The drain of one server, performed: `domain.lifecycle.drain` decides, this acts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from holdfast.adapters.uvicorn.listener import Listener
from holdfast.adapters.uvicorn.watch import Drainable, Watch
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.lifecycle.drain import (
    Announce,
    Begun,
    Cut,
    CutOff,
    Decision,
    Done,
    Drain,
    DrainTerms,
    Event,
    Kind,
    Looked,
    ReleaseQuiet,
    SayFarewell,
    StopAccepting,
    Verdict,
    opening,
    verdict,
)
from holdfast.runtime.bell import Bell
from holdfast.runtime.driver import driver_of

__all__ = ["Drainage", "Tell"]

_EVERY: Final[Duration] = 0.02
"""Seconds between two looks at all connections, however much happens to them."""

_SAMPLE: Final[Duration] = 0.1
"""Seconds between two notes of how much is in flight."""


class Tell(Protocol):
    """Where it is said what happens."""

    def __call__(self, kind: str, subject: str, detail: str = "", **data: object) -> None: ...


class Drainage:
    """One drain. `begin` announces it, `finish` performs the rest.

    Args:
        terms: its times.
        watch: what the connections tell.
        listeners: where new ones come from.
        connections: the open ones, as the server keeps them.
        tasks: those of requests, also behind a response that is complete.
        answered: how many requests were answered so far.
        tell: is told of each step.
        cut: ends what is served, with the cause of the stop; called at the deadline.
    """

    def __init__(
        self,
        terms: DrainTerms,
        watch: Watch,
        listeners: Sequence[Listener],
        connections: Callable[[], Iterable[object]],
        tasks: set[asyncio.Task[Any]],
        answered: Callable[[], int],
        tell: Tell,
        cut: Callable[[], None],
    ) -> None:
        self._terms = terms
        self._watch = watch
        self._listeners = listeners
        self._connections = connections
        self._tasks = tasks
        self._answered = answered
        self._before = answered()
        self._tell = tell
        self._cut = cut
        self._now = driver_of(asyncio.get_running_loop()).now
        self._bell = Bell(_EVERY)
        self._machine = Drain()
        self._state = opening(terms)
        self._releasing = False
        self._finished = False
        self._closed = 0
        self._aborted = 0
        self._sampled = -1
        self._sampled_at: Instant = 0.0
        self.last: Callable[[], bool] = bool
        """Says whether nobody else serves what waits in a shared accept queue."""

    def begin(self, deadline: Instant) -> None:
        """Announce the stop; what is served must be done by the monotonic instant `deadline`."""
        self._watch.ring = self._bell.ring
        decided = self._step(Begun(deadline))
        if any(isinstance(decision, Announce) for decision in decided):
            self._announce()

    def hurry(self) -> None:
        """Cut what is open now; for somebody who cannot wait."""
        self._pending = CutOff()
        self._bell.ring()

    _pending: CutOff | None = None

    async def finish(self) -> int:
        """Perform the drain to its end; how many connections and requests were left over."""
        left = 0
        while not self._finished:
            event = self._pending or Looked(self._look(), self._watch.accepted)
            self._pending = None
            for decision in self._step(event):
                match decision:
                    case Announce():
                        self._announce()
                    case StopAccepting(why):
                        await self._stop_accepting(why)
                    case SayFarewell():
                        self._tell("drain.step", "farewell", f"WebSockets get {self._watch.code}")
                    case ReleaseQuiet():
                        self._releasing = True
                    case Cut():
                        self._cut_now()
                    case Done():
                        left, self._finished = decision.left, True
            if not self._finished:
                self._sample()
                await self._bell.wait(min(self._release(), self._state.look))
        self._tell(
            "drain.step", "done", f"{left} left over" if left else "nothing is open any more",
            left=left, closed=self._closed, aborted=self._aborted,
            finished=max(0, self._answered() - self._before),
        )  # fmt: skip
        return left

    def abandon(self) -> None:
        """Cut off whatever is still connected."""
        for connection in tuple(self._connections()):
            if isinstance(connection, Drainable):
                connection.abort()
        for task in tuple(self._tasks):
            task.cancel()

    def _step(self, event: Event) -> Sequence[Decision]:
        self._state, decided = self._machine.step(self._state, event, self._now())
        return decided

    def _sample(self) -> None:
        now, served = self._now(), len(self._tasks)
        if served != self._sampled and now >= self._sampled_at + _SAMPLE:
            self._sampled, self._sampled_at = served, now
            self._tell("drain.step", "in_flight", f"{served} requests", in_flight=served)

    def _look(self) -> int:
        for task in [task for task in self._tasks if task.done()]:
            # It was cancelled before its first step, and could not take itself out.
            self._tasks.discard(task)
        connected = sum(1 for _ in self._connections())
        if not connected:
            for task in self._tasks:  # work behind a response; nothing else tells of its end
                task.remove_done_callback(self._task_done)
                task.add_done_callback(self._task_done)
        return len(self._tasks) + connected

    def _task_done(self, _: asyncio.Task[Any]) -> None:
        self._bell.ring()

    def _announce(self) -> None:
        self._watch.announcing = True
        served = len(self._tasks)
        held = 0
        for connection in tuple(self._connections()):
            held += 1
            if isinstance(connection, Drainable):
                connection.announce()
        self._tell(
            "drain.step", "announce", f"{held} connections, {served} requests in flight",
            connections=held, in_flight=served,
        )  # fmt: skip

    async def _stop_accepting(self, why: str) -> None:
        self._tell("drain.step", "lame_duck_over", why)
        taken = 0
        for listener in self._listeners:
            taken += await listener.close(last=self.last())
        self._tell(
            "drain.step", "listener_closed", f"{taken} were still in the accept queue", taken=taken
        )

    def _cut_now(self) -> None:
        names = sorted(task.get_name() for task in self._tasks)
        self._tell("drain.step", "deadline", f"{len(names)} requests are cut", in_flight=len(names))
        self._cut()

    def _release(self) -> Instant:
        """Close what is quiet; the instant at which the next one will be."""
        if not self._releasing:
            return NEVER
        now, begun, look = self._now(), self._state.begun, NEVER
        for connection in tuple(self._connections()):
            if not isinstance(connection, Drainable):
                continue
            line = connection.line()
            if line.kind is Kind.WEBSOCKET and line.leaving == NEVER:
                connection.leave()
                line = connection.line()
            found, due = verdict(line, begun, self._terms, now)
            if found is Verdict.CLOSE:
                self._closed += 1
                connection.leave()
                due = now + self._terms.parting
            elif found is Verdict.ABORT:
                self._aborted += 1
                connection.abort()
            look = min(look, due)
        return look
