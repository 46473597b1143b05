"""An event loop whose time is not the time on the wall.

Rule 1. When nothing is ready the loop does not wait for its next timer: it jumps there. An hour of
        sleeping takes no time, and takes exactly an hour.
Rule 2. While something real is under way, time passes as it does outside. Real is: a registered
        file descriptor, a call in an executor or in a worker thread of anyio, and whatever a test
        puts into `real_time()`. A thread that the loop did not start is unknown to it.
Rule 3. When no timer is left either, only another thread could wake the loop. It gets `patience`
        seconds of real time; then `Stuck` is raised instead of hanging the test.
Rule 4. A loop that is never idle would stop the time. So after 10,000 turns in one instant each
        further turn takes 100 microseconds. (anyio tries a cancellation again in every turn, for
        as long as the task that it is for cleans up.)

A test that keeps to timers is therefore deterministic, and one that cannot is still correct.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar, TypeVarTuple

from holdfast.domain.instant import Duration, Instant
from holdfast.runtime.clock import monotonic

__all__ = ["START", "Stuck", "VirtualLoop", "run_virtual"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START: Final[Instant] = 2.0**20
"""Where virtual time begins. Not zero, so that an instant is never taken for a duration; a power of
two, so that sums and differences of instants are exact for the next twelve days."""

_BUSY_TURNS: Final = 10_000
_BUSY_TURN: Final[Duration] = 0.0001


class Stuck(RuntimeError):
    """Every task of a virtual loop waits, and neither a timer nor anything real could wake one."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time; see the rules of the module.

    Attributes:
        patience: seconds of real time that rule 3 waits.
        jumped: seconds that were jumped over.
    """

    def __init__(self, patience: Duration = 2.0) -> None:
        self.patience = patience
        self.jumped: Duration = 0.0
        self._now = START
        self._waits_since: Instant | None = None
        self._real = 0
        self._away: set[Future[Any]] = set()
        self._threads: ThreadPoolExecutor | None = None
        super().__init__(_Selector(self))
        # asyncio runs a timer that is due within this many seconds. The distance to the next float
        # keeps it from running one early, which would find its instant still ahead, for ever.
        self._clock_resolution = math.ulp(self._now)

    def time(self) -> Instant:
        """Virtual seconds. Moves only while the loop waits, so a callback takes no time."""
        since = self._waits_since
        return self._now if since is None else self._now + (monotonic() - since)

    def monotonic(self) -> Instant:
        """The clock that scopes on this loop use: its own."""
        return self.time()

    @contextmanager
    def real_time(self) -> Generator[None]:
        """Let time pass as it does outside, for what the loop cannot know to be real."""
        self._real += 1
        try:
            yield
        finally:
            self._real -= 1

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run `func` in a thread. Until it returns time is real, even if nobody waits."""
        call = (executor or self._own_threads()).submit(func, *args)
        self._away.add(call)
        future = asyncio.wrap_future(call, loop=self)
        call.add_done_callback(self._returned)
        return future

    def _returned(self, call: Future[Any]) -> None:
        # On the loop, and after the result was told there: until then something real is under way.
        with suppress(RuntimeError):  # a thread that returns after its loop was closed
            self.call_soon_threadsafe(self._away.discard, call)

    async def shutdown_default_executor(self, timeout: Duration | None = None) -> None:
        """Wait for the threads, in real time."""
        with self.real_time():
            await super().shutdown_default_executor()

    def _own_threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(thread_name_prefix="virtual")
            self.set_default_executor(self._threads)
        return self._threads

    # -- for the selector ------------------------------------------------------------------------

    def is_real(self, descriptors: int) -> bool:
        """Whether something real is under way, given how many descriptors are registered."""
        # One descriptor is the loop's own, for waking it from another thread.
        return descriptors > 1 or self._real > 0 or bool(self._away) or _anyio_threads(self)

    def jump(self, by: Duration) -> None:
        """Move time forward, to the next float at least."""
        now = max(self._now + by, math.nextafter(self._now, math.inf))
        self.jumped += now - self._now
        self._now = now
        self._clock_resolution = math.ulp(now)

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Time runs with the clock on the wall inside."""
        self._waits_since = monotonic()
        try:
            yield
        finally:
            self._now, self._waits_since = self.time(), None
            self._clock_resolution = math.ulp(self._now)


class _Selector(selectors.DefaultSelector):
    """Asks the operating system what is ready, and the loop how to wait when nothing is."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            self._turns += 1
            if self._turns > _BUSY_TURNS:
                self._loop.jump(_BUSY_TURN)
            return ready
        self._turns = 0
        if self._loop.is_real(len(self.get_map())):
            with self._loop.waiting():
                return super().select(timeout)
        if timeout is not None:
            self._loop.jump(timeout)
            return []
        ready = super().select(self._loop.patience)
        if not ready:
            raise Stuck(f"nothing can wake these tasks: {sorted(map(repr, _waiting(self._loop)))}")
        return ready


def _waiting(loop: asyncio.AbstractEventLoop) -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks(loop)


def _anyio_threads(loop: asyncio.AbstractEventLoop) -> bool:
    # anyio has an executor of its own. Its threads know their loop, and the list they are in when
    # they have nothing to do.
    return any(
        getattr(thread, "loop", None) is loop and thread not in getattr(thread, "idle_workers", ())
        for thread in threading.enumerate()
    )


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a fresh `VirtualLoop`, as `asyncio.run` would.

    Raises:
        Stuck: every task waits for something that cannot happen.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
