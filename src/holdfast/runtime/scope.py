"""The scope: bounded work on an event loop.

Entering opens a node of the tree and, where the limit is tighter than the parent's, a timer.
Leaving closes it, whatever happened, and turns a cancellation that began here into an error that
says why.

The count of cancellations that `asyncio.Task` keeps is left exactly as `asyncio.timeout` would
leave it: the scope takes back what it delivered, and a cancellation by anybody else goes on.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import DeadlineExceeded, ScopeEnded, UsageError
from holdfast.domain.instant import Instant
from holdfast.domain.tree import Node, Outcome
from holdfast.runtime.driver import Driver, Last, driver_of
from holdfast.runtime.elsewhere import Gone, Stub, seen_from_here
from holdfast.runtime.hosted import NOT_ENTERED, HostedNode, error_for, outcome_of
from holdfast.runtime.shields import shield_mark

__all__ = ["AMBIENT", "Scope", "ambient", "running_task"]

AMBIENT: Final[ContextVar[HostedNode | None]] = ContextVar("holdfast", default=None)

_CO_ASYNC_GENERATOR: Final = 0x200
_DONE: Final = Outcome.DONE
_FOR_USERS: Final = frozenset(
    {
        "age",
        "budget",
        "cancel",
        "carried",
        "cause",
        "deadline",
        "move_deadline",
        "name",
        "origin",
        "outcome",
        "path",
        "reached",
        "remaining",
    }
)
"""What `dir` shows. The rest is for the driver, the carriers and the live tree."""

_ANYIO: Final = "anyio._backends._asyncio"
_modules: Final = sys.modules
if sys.version_info >= (3, 12):
    running_task: Final = asyncio.current_task
else:
    # There it is written in Python, and asks the kernel for the process id on the way: together as
    # long as half of all else that entering a scope takes.
    from threading import get_ident

    _current_tasks: Final[dict[Any, asyncio.Task[Any]]] = vars(asyncio.tasks)["_current_tasks"]

    def running_task() -> asyncio.Task[Any] | None:
        last = Last.driver
        if last is not None and last.thread == get_ident():
            task = _current_tasks.get(last.loop)
            if task is not None:
                return task
        return asyncio.current_task()


_frame: Final = sys._getframe  # pyright: ignore[reportPrivateUsage] - the only way, and CPython's


class Scope(HostedNode):
    """Bounded work: `async with` it in coroutines, `with` it in plain functions.

    In a coroutine the body is cancelled when the limit is spent or `cancel` is called. In a plain
    function nothing can be cancelled: the limit bounds what carriers inside will wait for, and is
    checked at the end.

    Attributes:
        name: its own segment of the path.
        path: names from the outermost scope to this one, joined by `/`.
        origin: path of the scope that detached work came from; empty for other work.
        budget: seconds that it was given when it was entered; infinite without a limit.
        deadline: monotonic instant at which its work is cancelled; infinite without one.
        carried: identity, stage and baggage.
        cause: why it was cancelled, when the cancellation began here; none otherwise. `reached()`
            also tells of one that began above.
        outcome: how it ended; none while it is open.

    Raises, on entering or leaving:
        DeadlineExceeded: the limit is spent. When it was spent on entry, the body does not run.
        Cancelled: the scope was cancelled for another reason.
        UsageError: it is entered twice, or `with` is used inside a coroutine.
    """

    __slots__ = ()

    # -- entering --------------------------------------------------------------------------------

    async def __aenter__(self) -> Scope:
        task = running_task()
        if task is None:
            raise UsageError("a scope needs a task: use it in a coroutine that the loop runs")
        outer = AMBIENT.get()
        if self.special:
            driver = None
        elif outer is None:
            driver = Last.driver
            if driver is not None and driver.loop is not task.get_loop():
                driver = None
        else:
            driver = outer.driver if outer.task is task else None
        if driver is None:
            self.enter(task)
        else:
            # The same as `enter`, unrolled: this is where nearly all scopes come through.
            if self.driver is not NOT_ENTERED:
                raise self.used_before()
            self.driver = driver
            self.outer = outer
            self.parent = parent = driver.root if outer is None else outer
            self.opened_at = now = driver.now()
            limit = parent.limit
            wish = now + self.wish
            if wish < limit:
                self.tightens = True
                limit = wish
            self.limit = limit
            if limit <= now or parent.outcome is not None or driver.troubles:
                self._enter_again(parent, now)
            driver.young.append(self)
            if limit <= driver.horizon:
                driver.await_settling(self, now)
            self.task = task
            self.baseline = task.cancelling()
            if _ANYIO in _modules:
                self.mark = shield_mark(task)
            AMBIENT.set(self)
        if self.tightens:
            frame = _frame(1)
            if frame.f_code.co_flags & _CO_ASYNC_GENERATOR:
                self.entered_in_generator(frame)
        return self

    def enter_first(self, task: asyncio.Task[Any], driver: Driver, now: Instant) -> None:
        """`enter` for a scope with nothing around it, as a server opens for every request."""
        self.driver = driver
        self.parent = root = driver.root
        self.opened_at = now
        limit = self.at
        if self.grace:
            self.kept = self.grace
            limit -= self.grace
        if limit < root.limit:
            self.tightens = True
            self.limit = limit
        else:
            self.limit = limit = root.limit
        if limit <= now or driver.troubles:
            self.driver = NOT_ENTERED
            self.tightens = False
            self.enter(task)
            driver.young.append(self)  # it grows up as all do
            return driver.await_settling(self, now)
        driver.young.append(self)
        if limit <= driver.horizon:
            driver.await_settling(self, now)
        self.task = task
        self.baseline = task.cancelling()
        if _ANYIO in _modules:
            self.mark = shield_mark(task)
        AMBIENT.set(self)
        return None

    def _enter_again(self, parent: Node, now: Instant) -> None:
        # Something is the matter above: decide by the book.
        self.tightens = False
        refusal = self.admit(parent.nearest_open(), now, now + self.wish)
        if refusal is not None:
            raise self.refused(refusal, now)

    def enter(self, task: asyncio.Task[Any]) -> None:
        """Open under the ambient scope, hosted by `task`, which is the running one.

        Raises:
            DeadlineExceeded, Cancelled, UsageError: see the class.
        """
        outer = AMBIENT.get()
        if self.driver is not NOT_ENTERED:
            raise self.used_before()
        loop = task.get_loop()
        driver = (
            outer.driver if outer is not None and outer.driver.loop is loop else driver_of(loop)
        )
        self.driver, self.outer = driver, outer
        now = driver.now()
        wish = min(now + self.wish, self.at)
        parent: Node = driver.root
        if outer is not None:
            if outer.driver is driver:
                parent = outer.nearest_open()
                if isinstance(parent, Scope) and not parent.settled:
                    driver.settle()  # what is below it must be found through it
            else:  # a scope of another loop bounds this one, but is no parent: trees never cross
                self.origin = outer.path
                wish = min(wish, outer.limit)
        if self.keep:
            wish = min(wish, parent.limit - self.keep)
        refusal = self.admit(parent, now, wish, self.grace)
        if refusal is not None:
            raise self.refused(refusal, now)
        self.settle()
        self.task = task
        self.baseline = task.cancelling()
        self.mark = shield_mark(task)
        AMBIENT.set(self)

    def __dir__(self) -> list[str]:
        return [n for n in super().__dir__() if n in _FOR_USERS or n.startswith("__")]

    # -- leaving ---------------------------------------------------------------------------------

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.left_quietly(exc):
            self.leave(exc)

    def left_quietly(self, exc: BaseException | None) -> bool:
        """Leave, if nothing ever happened to it and nobody has looked at it; most are so."""
        driver = self.driver
        if (
            self.settled
            or exc is not None
            or driver.troubles
            or (self.tightens and self.limit <= driver.now())
        ):
            return False
        if AMBIENT.get() is self:
            AMBIENT.set(self.outer)
        self.outcome = _DONE
        young = driver.young
        if young and young[-1] is self:
            young.pop()
        return True

    def leave(self, exc: BaseException | None) -> None:
        """Close, and raise what ended the scope when it did not end by itself.

        Raises:
            DeadlineExceeded, Cancelled: see the class.
        """
        if AMBIENT.get() is self:
            AMBIENT.set(self.outer)
        driver = self.driver
        self.settle()
        if self.tightens:
            driver.timers.discard(self, self.limit)
        late = self.tightens and self.limit <= driver.now()
        if late and self.reached() is None:
            # The body never gave the loop a chance to cancel it. The limit is spent all the same.
            now = driver.now()
            kind = driver.ending(self)
            self.cancel_node(self.cause_of(kind, now, "noticed when the block ended"))
            driver.counts[f"cancelled.{kind}"] += 1
        if self.cause is not None or self.delivered:
            self._leave_cancelled(exc)
            return
        if driver.troubles:
            self._pass_on()
        self.shut(_DONE if exc is None else outcome_of(exc))

    def _leave_cancelled(self, exc: BaseException | None) -> None:
        task, cause = self.task, self.cause
        cancelled = isinstance(exc, asyncio.CancelledError)
        foreign = False
        if task is not None and (cause is not None or not cancelled):
            for _ in range(self.delivered):
                task.uncancel()
            foreign = task.cancelling() > self.baseline
        if cause is None:
            # The owner is above, in another task; here it only passes. But a block that was told to
            # end must not look as if it had not been.
            cause = None if cancelled else self.reached()
        if cause is None or (foreign and cancelled) or not (exc is None or cancelled):
            if cause is not None and exc is not None and not isinstance(exc, ScopeEnded):
                exc.add_note(f"meanwhile: {cause.line()}")
            self._pass_on()
            self.shut(outcome_of(exc) if exc is not None else Outcome.CANCELLED)
            return
        self._pass_on()
        expired = cause.kind is CauseKind.DEADLINE
        self.shut(Outcome.EXPIRED if expired else Outcome.CANCELLED)
        del task  # the error may become its result, and holds this frame: no circle
        if self.trail is not None and not cause.detail:
            self.cause = cause = replace(cause, detail=self.trail.brief())
        raise error_for(cause, self.trail) from exc

    def _pass_on(self) -> None:
        """A scope above that was cancelled meanwhile had to wait for this one: it is its turn."""
        owner: Scope | None = None
        node = self.parent
        while isinstance(node, Scope) and node.task is self.task:
            if node.reached() is not None:
                owner = node
            if node.shielded:
                break
            node = node.parent
        if owner is not None and owner.delivered == 0:
            self.driver.delivery.owed(owner)

    # -- plain functions -------------------------------------------------------------------------

    def __enter__(self) -> Scope:
        self._refuse_in_coroutine()
        return self.enter_plain()

    def enter_plain(self) -> Scope:
        """`__enter__`, for who opens and closes it around calls of plain functions.

        Also inside a coroutine, which then waits for them in vain: tests do that.
        """
        if self.driver is not NOT_ENTERED:
            raise self.used_before()
        outer = AMBIENT.get()
        self.driver = driver = outer.driver if outer is not None else _thread_driver()
        now = driver.now()
        # The tree and the timers belong to the thread of the loop. A scope of a plain function
        # takes its limit from there, and is a tree of its own.
        stub = Stub("thread")
        stub.open_root(now)
        if outer is not None:
            self.outer, self.origin, seen = outer, outer.path, ambient()
            stub.limit = outer.limit
            stub.cause = seen.cause if isinstance(seen, Gone) else outer.reached()
        wish = min(now + self.wish, self.at, stub.limit - self.keep)
        refusal = self.admit(stub, now, wish, self.grace)
        if refusal is not None:
            raise self.refused(refusal, now)
        AMBIENT.set(self)
        return self

    def _refuse_in_coroutine(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if asyncio.current_task(loop) is not None:
            raise UsageError(f"write 'async with' for scope '{self.name}' inside a coroutine")

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if AMBIENT.get() is self:
            AMBIENT.set(self.outer)
        now = self.driver.now()
        if exc is None and self.limit <= now:
            self.close(Outcome.EXPIRED)
            cause = self.cause_of(CauseKind.DEADLINE, now, "a plain function ran on")
            raise DeadlineExceeded(cause)
        self.close(_DONE if exc is None else outcome_of(exc))


# A forked child works for nobody: the request of its parent is the parent's.
os.register_at_fork(after_in_child=lambda: AMBIENT.set(None))


def ambient() -> HostedNode | None:
    """The innermost scope that is open here, or none."""
    scope = AMBIENT.get()
    if scope is None or (
        scope.outcome is None and scope.task is not None and not scope.driver.troubles
    ):
        return scope
    return seen_from_here(scope)


class _Thread:
    driver: Driver | None = None


def _thread_driver() -> Driver:
    """A driver for plain functions that run without any loop around them."""
    if _Thread.driver is None:
        loop = asyncio.new_event_loop()
        loop.close()
        _Thread.driver = Driver(loop)
    return _Thread.driver
