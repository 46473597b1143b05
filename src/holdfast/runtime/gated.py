"""The drain of a server whose connections cannot be reached, and the component around it.

`domain.lifecycle.drain` decides. What it decides about single connections is left to the server;
all that is known here is what passes through the gate in front of the application. So the lame
duck does the work of the quiet window: while it lasts every response says that its connection
ends, and connections that are in use leave by themselves, one after another. Only then is the
server told to stop.

What remains: a client that was silent for the whole lame duck and sends in the moment in which the
server closes its connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from holdfast.domain.instant import Duration, Instant
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
    Looked,
    Step,
    StopAccepting,
    opening,
)
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.ports.gate import Gate, ServerDrain, Tell
from holdfast.runtime.accept import taken_in
from holdfast.runtime.bell import Bell
from holdfast.runtime.driver import driver_of
from holdfast.runtime.tasks import aside

__all__ = ["GatedDrain", "GatedServer"]

_EVERY: Final[Duration] = 0.02
"""Seconds between two looks, however much happens."""
_HURRIED: Final[Duration] = 0.1
"""Seconds for close frames to be sent where there is no time."""
_LATE: Final[Duration] = 0.5
"""Seconds that a server has to end when nothing is served any more."""


def _nothing() -> None:
    """There is no host."""


def _to_nobody(kind: str, subject: str, detail: str = "", **data: object) -> None:
    """Nobody wants to know."""


class GatedDrain:
    """One drain; a `ServerDrain`.

    Args:
        gate: sees every request.
        terms: gives the times when the drain begins. The lame duck lasts for `quiet` at least.
        tell: is told of each step.
        cut: is called at the deadline, before what is still served is cancelled: for a host that
            cancels, and counts, what it can reach.
        listeners: listening sockets that nobody else accepts from, whose accept queues are emptied
            before the server closes them.
    """

    def __init__(
        self,
        gate: Gate,
        terms: Callable[[], DrainTerms] = DrainTerms,
        tell: Tell = _to_nobody,
        *,
        cut: Callable[[], object] = _nothing,
        listeners: Sequence[socket.socket] = (),
    ) -> None:
        self._gate = gate
        self._cut = cut
        self._terms = terms
        self._tell = tell
        self._listeners = listeners
        self._machine = Drain()
        self._state = opening(DrainTerms())
        self._pending: CutOff | None = None
        self._over = False
        self._bell: Bell | None = None

    @property
    def begun(self) -> bool:
        """Whether the announcement was made."""
        return self._state.step is not Step.SERVING

    def begin(self, deadline: Instant) -> None:
        """See `ServerDrain`."""
        if self._bell is None:
            self._bell = Bell(_EVERY)
            terms = self._terms()
            self._state = opening(replace(terms, least=max(terms.least, terms.quiet), quiet=0.0))
            self._perform_now(self._step(Begun(deadline)))

    def hurry(self) -> None:
        """See `ServerDrain`."""
        self._pending = CutOff()
        self._bell_rings()

    def server_ended(self) -> None:
        """The server has closed all connections by itself, so there is nothing to wait for."""
        self._over = True
        self._bell_rings()

    def _bell_rings(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    async def finish(self, stop: Callable[[], object]) -> int:
        """See `ServerDrain`.

        Raises:
            RuntimeError: it was not begun.
        """
        bell = self._bell
        if bell is None:
            raise RuntimeError("this drain was not begun")
        while True:
            view = self._gate.look()
            if self._over:
                if not view.requests + view.sockets:
                    return self._done(0)
                if self._state.step is not Step.CUTTING:
                    self._pending = CutOff()
            event = self._pending or Looked(view.requests + view.sockets, view.latest)
            self._pending = None
            decided = self._step(event)
            for decision in decided:
                match decision:
                    case StopAccepting(why):
                        self._tell("drain.step", "lame_duck_over", why)
                        await self._part(bell)
                        await self._empty()
                        stop()
                        self._tell("drain.step", "listener_closed", "the server was told to stop")
                    case Done(left):
                        return self._done(left)
                    case _:
                        self._perform_now((decision,))
            await bell.wait(self._state.look)

    def _done(self, left: int) -> int:
        told = f"{left} left over" if left else "nothing is served any more"
        self._tell("drain.step", "done", told, left=left)
        return left

    def _step(self, event: Event) -> Sequence[Decision]:
        now = driver_of(asyncio.get_running_loop()).now()
        self._state, decided = self._machine.step(self._state, event, now)
        return decided

    def _perform_now(self, decided: Sequence[Decision]) -> None:
        for decision in decided:
            match decision:
                case Announce():
                    assert self._bell is not None
                    self._gate.announce(self._bell.ring)
                    view = self._gate.look()
                    self._tell(
                        "drain.step", "announce", f"{view.requests} requests in flight",
                        in_flight=view.requests, sockets=view.sockets,
                    )  # fmt: skip
                case Cut():
                    self._cut()
                    names = self._gate.cut()
                    told = f"{len(names)} requests are cut"
                    self._tell("drain.step", "deadline", told, in_flight=len(names))
                case _:
                    pass  # of the machine's order only this is for a gate

    async def _part(self, bell: Bell) -> None:
        """Say farewell to WebSockets, before the server hears of the stop: some just drop them."""
        count = self._gate.farewell()
        if not count:
            return
        self._tell("drain.step", "farewell", f"{count} WebSockets are closed", sockets=count)
        now = driver_of(asyncio.get_running_loop()).now
        patience = _HURRIED if self._state.step is Step.CUTTING else self._state.terms.farewell
        until = min(now() + patience, max(now() + _HURRIED, self._state.deadline))
        while self._gate.look().sockets and now() < until and self._pending is None:
            await bell.wait(until)

    async def _empty(self) -> None:
        if self._state.step is Step.CUTTING:
            return
        taken = 0
        for listener in self._listeners:
            with suppress(OSError):  # closed already, by somebody else
                taken += await taken_in(listener)
        if taken:
            self._tell("drain.step", "accept_queue", f"{taken} were taken in", taken=taken)


class GatedServer:
    """A component made of a server that runs in one task and can be told to stop.

    Subclasses say how: `_serve`, `_opened`, `_release`, `_unsent`, `_abandon`.

    Args:
        drain: how it is let go of.

    Attributes:
        failure: why it could not listen, where that is known.
    """

    failure: OSError | None = None

    def __init__(self, drain: ServerDrain) -> None:
        self._drain = drain
        self._running: asyncio.Task[None] | None = None

    # -- for subclasses --------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Serve until `_release` was called and all is done."""
        raise NotImplementedError

    async def _opened(self) -> None:
        """Wait until connections are accepted."""

    def _announce(self) -> None:
        """The stop was announced; for what only the server can say, such as GOAWAY."""

    def _release(self) -> None:
        """Have the server accept no more, close what is idle, and end when all is done."""
        raise NotImplementedError

    def _finished(self) -> None:
        """Nothing is served any more."""

    def _unsent(self) -> bool:
        """Whether some client has not yet taken what was answered."""
        return False

    def _abandon(self) -> None:
        """Cut off whatever is still connected."""

    # -- the component ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Accept connections.

        Raises:
            Exception: what the server raised when it could not.
        """
        # Apart from what is ambient here: connections would inherit it.
        running = self._running = aside(self._serve(), name=f"holdfast {type(self).__name__}")
        opened = aside(self._opened(), name=f"{type(self).__name__} opens")
        try:
            await asyncio.wait([running, opened], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                raise RuntimeError("the server ended as soon as it was started")
        except BaseException as error:
            if isinstance(error, OSError):
                self.failure = error
            running.cancel()
            raise
        finally:
            opened.cancel()

    async def prepare(self, request: ShutdownRequest) -> None:
        """Announce the stop."""
        self._drain.begin(request.deadline)
        self._announce()

    async def stop(self, deadline: Instant) -> None:
        """Drain; what is served is cut at the monotonic instant `deadline`."""
        self._drain.begin(deadline)
        self._announce()
        running = self._running
        try:
            await self._drain.finish(self._release)
            self._finished()
            if running is not None:
                await self._ended(running, deadline)
        finally:
            self._abandon()
            if running is not None and not running.done():
                running.cancel()
                await asyncio.wait([running], timeout=_LATE)

    async def _ended(self, running: asyncio.Task[None], deadline: Instant) -> None:
        now = driver_of(asyncio.get_running_loop()).now
        while True:
            await asyncio.wait([running], timeout=_LATE)
            if running.done() or not self._unsent() or now() >= deadline:
                return

    async def wait(self) -> None:
        """Return or raise as the server does."""
        assert self._running is not None
        await asyncio.wait([self._running])
        self._running.result()

    def hurry(self) -> None:
        """Cut now whatever is open, if the drain has begun."""
        self._drain.hurry()
