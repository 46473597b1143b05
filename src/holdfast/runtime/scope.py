"""The scope: bounded work on an event loop.

Entering opens a node of the tree and, where the limit is tighter than the parent's, a timer. Leaving
closes it, whatever happened, and turns a cancellation that began here into an error that says why.

The count of cancellations that `asyncio.Task` keeps is left exactly as `asyncio.timeout` would leave
it: the scope takes back what it delivered, and a cancellation by anybody else goes on.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import ContextVar
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.errors import Cancelled, DeadlineExceeded, ScopeEnded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.tree import Node, Outcome, Refusal
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.shields import frames_of, shield_mark

__all__ = ["AMBIENT", "Scope", "Shield", "ambient"]

AMBIENT: Final[ContextVar[Scope | None]] = ContextVar("holdfast", default=None)

_CO_ASYNC_GENERATOR: Final = 0x200


class Scope(Node):
    """Bounded work: `async with` it in coroutines, `with` it in plain functions.

    In a coroutine the body is cancelled when the limit is spent or `cancel` is called. In a plain
    function nothing can be cancelled: the limit bounds what carriers inside will wait for, and is
    checked at the end.

    Raises, on entering or leaving:
        DeadlineExceeded: the limit is spent. When it was spent on entry, the body does not run.
        Cancelled: the scope was cancelled for another reason.
        UsageError: it is entered twice, or `with` is used inside a coroutine.
    """

    driver: Driver
    carried: Carried = ANONYMOUS
    outer: Scope | None = None
    task: asyncio.Task[Any] | None = None
    mark: object = None
    hop: str = ""
    baseline: int = 0
    delivered: int = 0
    shields: int = 0
    deaf: bool = False
    wish: Duration = NEVER
    at: Instant = NEVER
    keep: Duration = 0.0
    grace: Duration = 0.0
    generator: CodeType | None = None
    ledger: Ledger | None = None

    def __init__(self, name: str, seconds: Duration = NEVER) -> None:
        self.name = name
        self.wish = seconds

    # -- reading ---------------------------------------------------------------------------------

    @property
    def deadline(self) -> Instant:
        """Monotonic instant at which the work is cancelled; infinite without one."""
        return self.limit

    def remaining(self) -> Duration:
        """Seconds until the deadline, 0.0 when it is spent, infinite without one."""
        return max(0.0, self.limit - self.driver.now())

    def age(self) -> Duration:
        """Seconds since the scope was opened."""
        return self.driver.now() - self.opened_at

    def cause_of(self, kind: CauseKind, now: Instant, detail: str = "") -> Cause:
        """A cause that begins here and now."""
        hop, node = self.hop, self.parent
        while not hop and node is not None:
            hop, node = getattr(node, "hop", ""), node.parent
        return Cause(kind, self.path, hop, now, self.budget, now - self.opened_at, detail)

    # -- steering --------------------------------------------------------------------------------

    def cancel(self, detail: str = "", *, kind: CauseKind = CauseKind.CALLER) -> bool:
        """Cancel the work of this scope and everything below it.

        Returns false when the scope is closed or a cancellation had reached it already: the first
        cause wins. The block ends with `Cancelled`.

        Raises:
            UsageError: called from a thread that does not run the loop of the scope.
        """
        self._check_loop("cancel")
        if self.outcome is not None:
            return False
        return self.driver.begin(self, self.cause_of(kind, self.driver.now(), detail))

    def cancel_node(self, cause: Cause) -> bool:
        """Record `cause` in the tree without delivering it; for the driver."""
        return Node.cancel(self, cause)  # type: ignore[arg-type]

    def move_deadline(self, at: Instant) -> Instant:
        """Move the deadline to the monotonic instant `at`, no later than the parent's; the new one.

        Raises:
            UsageError: the scope is not open, or the call comes from another thread.
        """
        self._check_loop("move_deadline")
        if self.outcome is not None or self.parent is None:
            raise UsageError(f"scope '{self.name}' is not open, so its deadline cannot move")
        if self.tightens:
            self.driver.timers.discard(self, self.limit)
        bound = self.root.limit if self.shielded else self.parent.limit
        self.limit = self.end = min(at, bound)
        self.tightens = self.limit < bound or self.shielded
        if self.tightens:
            self.driver.timers.add(self, self.limit)
        if self.children:
            self._pull_in_children()
        return self.limit

    def lift(self) -> None:
        """Take away the deadline: what this scope waited for is there, the rest is not bounded by it."""
        if self.tightens:
            self.driver.timers.discard(self, self.limit)
            self.tightens = False
        self.limit = self.end = self.parent.limit if self.parent is not None else NEVER

    def _pull_in_children(self) -> None:
        # Children that inherited the old limit follow the new one; law 1 again.
        for node in tuple(self.children or ()):
            if isinstance(node, Scope) and not node.shielded:
                if node.limit > self.limit or not node.tightens:
                    if node.tightens:
                        node.driver.timers.discard(node, node.limit)
                    node.limit = node.end = self.limit
                    node.tightens = False
                node._pull_in_children()

    def _check_loop(self, call: str) -> None:
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if "driver" not in self.__dict__:
            raise UsageError(f"scope '{self.name}' is not entered, so it cannot {call}")
        if here is not self.driver.loop:
            raise UsageError(
                f"{call}() of scope '{self.name}' was called from another thread or loop; "
                f"use loop.call_soon_threadsafe(scope.{call}) with the loop of the scope"
            )

    # -- entering --------------------------------------------------------------------------------

    async def __aenter__(self) -> Scope:
        task = asyncio.current_task()
        if task is None:
            raise UsageError("a scope needs a task: use it in a coroutine that the loop runs")
        self.enter(task)
        caller = sys._getframe(1)
        if caller.f_code.co_flags & _CO_ASYNC_GENERATOR:
            self._entered_in_generator(caller)
        return self

    def enter(self, task: asyncio.Task[Any]) -> None:
        """Open under the ambient scope, hosted by `task`, which is the running one."""
        outer = AMBIENT.get()
        loop = asyncio.get_running_loop()
        self._place(outer, driver_of(loop) if outer is None else _driver_for(outer, loop))
        self.task = task
        self.baseline = task.cancelling()
        self.mark = shield_mark(task)
        AMBIENT.set(self)

    def _place(self, outer: Scope | None, driver: Driver) -> None:
        if "driver" in self.__dict__:
            raise UsageError(f"scope '{self.name}' was entered before; make a new one for each use")
        self.driver = driver
        now = driver.now()
        wish = now + self.wish
        if self.at < wish:
            wish = self.at
        parent: Node = driver.root
        if outer is not None:
            self.outer = outer
            self.carried = outer.carried
            if outer.driver is driver:
                parent = outer if outer.outcome is None else outer.nearest_open()
            else:  # a scope of another loop bounds this one, but is no parent: trees never cross
                self.origin = outer.path
                wish = min(wish, outer.limit)
            if self.keep:
                wish = min(wish, parent.limit - self.keep)
        refusal = self.open(parent, now, wish, self.grace)
        if refusal is not None:
            raise self.refused(refusal, parent, now)
        if self.tightens:
            driver.timers.add(self, self.limit)

    def refused(self, refusal: Refusal, parent: Node, now: Instant) -> ScopeEnded:
        """The error for a scope that was not opened."""
        cause = parent.reached()
        if refusal is not Refusal.PARENT_CANCELLED or cause is None:
            late = format_duration(max(0.0, now - self.limit))
            detail = f"spent {late} before entry, so the body did not run"
            cause = self.cause_of(CauseKind.DEADLINE, now, detail)
        return _error_for(cause)

    # -- leaving ---------------------------------------------------------------------------------

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(exc)

    def leave(self, exc: BaseException | None) -> None:
        """Close, and raise what ended the scope when it did not end by itself.

        Raises:
            DeadlineExceeded, Cancelled: see the class.
        """
        if AMBIENT.get() is self:
            AMBIENT.set(self.outer)
        if self.tightens:
            self.driver.timers.discard(self, self.limit)
            if self.cause is None and self.limit <= self.driver.now():
                self._expire_late()
        if self.cause is None and not self.delivered:
            if self.root.cancelled_open:
                self._pass_on()
            self._close(Outcome.DONE if exc is None else _outcome_of(exc))
            return
        self._end_cancelled(exc)

    def _expire_late(self) -> None:
        # The body never gave the loop a chance to cancel it. The limit is spent all the same.
        now = self.driver.now()
        if self.cancel_node(self.cause_of(CauseKind.DEADLINE, now, "noticed when the block ended")):
            self.driver.counts[f"cancelled.{CauseKind.DEADLINE}"] += 1

    def _end_cancelled(self, exc: BaseException | None) -> None:
        task, cause = self.task, self.cause
        if cause is None:
            # Reached from above, in a task that no cancelled scope owns: let it pass as it came.
            self._close(Outcome.CANCELLED)
            return
        foreign = False
        if task is not None:
            for _ in range(self.delivered):
                task.uncancel()
            foreign = task.cancelling() > self.baseline
        own = exc is None or isinstance(exc, asyncio.CancelledError)
        expired = cause.kind is CauseKind.DEADLINE
        self._pass_on()
        self._close(Outcome.EXPIRED if own and expired and not foreign else Outcome.CANCELLED)
        if not own or (foreign and exc is not None):
            if not isinstance(exc, ScopeEnded) and exc is not None:
                exc.add_note(f"meanwhile: {cause.line()}")
            return
        raise _error_for(cause) from exc

    def _pass_on(self) -> None:
        """A scope above that was cancelled meanwhile had to wait for this one: now it is its turn."""
        top: Scope | None = None
        node = self.parent
        while isinstance(node, Scope) and not self.shielded:
            if node.task is self.task and node.reached() is not None and node.delivered == 0:
                top = node
            if node.shielded:
                break
            node = node.parent
        if top is not None:
            self.driver.delivery.owed(top)

    def task_done(self, task: asyncio.Task[Any]) -> None:
        """Close with the task that the scope was made for."""
        if self.tightens:
            self.driver.timers.discard(self, self.limit)
        if task.cancelled():
            self._close(Outcome.CANCELLED)
        else:
            self._close(Outcome.DONE if task.exception() is None else Outcome.FAILED)

    def _close(self, outcome: Outcome) -> None:
        for node in self.close(outcome):
            self.driver.counts["escaped"] += 1
            if isinstance(node, Scope) and node.tightens:
                node.driver.timers.add(node, node.limit)

    # -- plain functions -------------------------------------------------------------------------

    def __enter__(self) -> Scope:
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not None and asyncio.current_task(loop) is not None:
            raise UsageError(f"write 'async with' for scope '{self.name}' inside a coroutine")
        outer = AMBIENT.get()
        driver = outer.driver if outer is not None else thread_driver()
        self._place_sync(outer, driver)
        AMBIENT.set(self)
        return self

    def _place_sync(self, outer: Scope | None, driver: Driver) -> None:
        # The tree and the timers belong to the loop's thread. A scope of a plain function takes the
        # limit from there, and is a tree of its own.
        if "driver" in self.__dict__:
            raise UsageError(f"scope '{self.name}' was entered before; make a new one for each use")
        self.driver = driver
        now = driver.now()
        stub = Node("thread")
        stub.open_root(now)
        if outer is not None:
            self.outer, self.carried, self.origin = outer, outer.carried, outer.path
            stub.limit = stub.end = outer.limit
            cause = outer.reached()
            if cause is not None:
                raise _error_for(cause)
        wish = min(now + self.wish, self.at, stub.limit - self.keep)
        refusal = self.open(stub, now, wish, self.grace)
        if refusal is not None:
            raise self.refused(refusal, stub, now)

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
            raise DeadlineExceeded(self.cause_of(CauseKind.DEADLINE, now, "a plain function ran on"))
        self.close(Outcome.DONE if exc is None else _outcome_of(exc))

    # -- async generators ------------------------------------------------------------------------

    def _entered_in_generator(self, frame: FrameType) -> None:
        back = frame.f_back
        if back is not None and back.f_globals.get("__name__") == "contextlib":
            return  # an @asynccontextmanager: what runs while it is suspended is its body
        self.generator = frame.f_code

    def suspended_in_generator(self) -> bool:
        """Whether the generator that entered this scope is suspended, so that its consumer runs."""
        if self.generator is None or self.task is None:
            return False
        chain = frames_of(self.task.get_coro())
        return all(code is not self.generator for code, _ in chain)


class Shield(Scope):
    """A bounded time for clean-up, out of reach of the cancellation of the scopes around it."""

    def __init__(self, name: str, grace: Duration) -> None:
        super().__init__(name)
        self.wish = grace

    def enter(self, task: asyncio.Task[Any]) -> None:
        outer = AMBIENT.get()
        loop = asyncio.get_running_loop()
        driver = driver_of(loop)
        if "driver" in self.__dict__:
            raise UsageError("a shield was entered before; make a new one for each use")
        self.driver, self.outer = driver, outer
        parent: Node = driver.root
        if outer is not None:
            self.carried = outer.carried
            parent = outer.nearest_open() if outer.driver is driver else driver.root
        self.open_shield(parent, driver.now(), self.wish)
        self.task = task
        self.baseline = task.cancelling()
        self.mark = shield_mark(task)
        self._count(+1)
        if self.tightens:
            driver.timers.add(self, self.limit)
        AMBIENT.set(self)

    def leave(self, exc: BaseException | None) -> None:
        self._count(-1)
        top: Scope | None = None
        for node in self._hosts():
            if node.reached() is not None and node.delivered == 0:
                top = node
        try:
            super().leave(exc)
        finally:
            if top is not None:
                self.driver.delivery.owed(top)

    def shorten(self, now: Instant) -> None:
        """A cancellation has begun outside: the grace runs from now."""
        if now + self.wish < self.limit:
            if self.tightens:
                self.driver.timers.discard(self, self.limit)
            self.limit = self.end = now + self.wish
            self.tightens = True
            self.driver.timers.add(self, self.limit)

    def _hosts(self) -> list[Scope]:
        """The scopes around this one that the same task hosts, innermost first."""
        hosts: list[Scope] = []
        node = self.parent
        while isinstance(node, Scope) and node.task is self.task:
            hosts.append(node)
            node = node.parent
        return hosts

    def _count(self, by: int) -> None:
        for node in self._hosts():
            node.shields += by


def ambient() -> Scope | None:
    """The innermost scope that is open here, or none."""
    scope = AMBIENT.get()
    while scope is not None and scope.outcome is not None:
        scope = scope.outer
    return scope


def thread_driver() -> Driver:
    """A driver for plain functions that run without any loop around them."""
    if _ThreadDriver.driver is None:
        loop = asyncio.new_event_loop()
        loop.close()
        _ThreadDriver.driver = Driver(loop)
    return _ThreadDriver.driver


class _ThreadDriver:
    driver: Driver | None = None


def _driver_for(outer: Scope, loop: asyncio.AbstractEventLoop) -> Driver:
    driver = outer.driver
    return driver if driver.loop is loop else driver_of(loop)


def _error_for(cause: Cause) -> ScopeEnded:
    return DeadlineExceeded(cause) if cause.kind is CauseKind.DEADLINE else Cancelled(cause)


def _outcome_of(exc: BaseException) -> Outcome:
    return Outcome.CANCELLED if isinstance(exc, asyncio.CancelledError) else Outcome.FAILED
