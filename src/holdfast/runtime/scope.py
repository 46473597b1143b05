"""The scope: bounded work on an event loop.

Entering opens a node of the tree and, where the limit is tighter than the parent's, a timer. Leaving
closes it, whatever happened, and turns a cancellation that began here into an error that says why.

The count of cancellations that `asyncio.Task` keeps is left exactly as `asyncio.timeout` would leave
it: the scope takes back what it delivered, and a cancellation by anybody else goes on.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextvars import ContextVar
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import ANONYMOUS, Carried
from holdfast.domain.errors import Cancelled, DeadlineExceeded, ScopeEnded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.tree import Node, Outcome, Refusal
from holdfast.runtime.driver import Driver, Last, driver_of
from holdfast.runtime.ledger import Ledger
from holdfast.runtime.shields import frames_of, shield_mark

__all__ = ["AMBIENT", "Scope", "ambient"]

AMBIENT: Final[ContextVar[Scope | None]] = ContextVar("holdfast", default=None)

_CO_ASYNC_GENERATOR: Final = 0x200
_DONE: Final = Outcome.DONE
_ANYIO: Final = "anyio._backends._asyncio"
_modules: Final = sys.modules
if sys.version_info >= (3, 12):
    _current_task: Final = asyncio.current_task
else:
    # There it is written in Python, and asks the kernel for the process id on the way: together as
    # long as half of all else that entering a scope takes.
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined] # pyright: ignore
    from threading import get_ident

    def _current_task() -> asyncio.Task[Any] | None:
        last = Last.driver
        if last is not None and last.thread == get_ident():
            task: asyncio.Task[Any] | None = _current_tasks.get(last.loop)
            if task is not None:
                return task
        return asyncio.current_task()

_frame: Final = sys._getframe  # pyright: ignore[reportPrivateUsage] - the only way, and CPython's


_NOT_ENTERED: Final[Any] = None


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

    __slots__ = (
        "baseline",
        "delivered",
        "driver",
        "mark",
        "outer",
        "settled",
        "special",
        "task",
        "wish",
    )

    # See `Node` for what is a slot and what is a default of the class.
    given: Carried | None = None
    hop: str = ""
    shields: int = 0
    deaf: bool = False
    at: Instant = NEVER
    keep: Duration = 0.0
    grace: Duration = 0.0
    generator: CodeType | None = None
    ledger: Ledger | None = None
    reserve: Duration | None = None

    driver: Driver

    def __init__(self, name: str, seconds: Duration = NEVER) -> None:
        # Not super().__init__(name): unrolled, as this runs for every scope.
        self.name = name
        self.parent = self.children = self.cause = self.outcome = None
        self.limit = NEVER
        self.opened_at = 0.0
        self.wish = seconds
        self.driver = _NOT_ENTERED
        self.outer: Scope | None = None
        self.task: asyncio.Task[Any] | None = None
        self.mark: object = None
        self.baseline = self.delivered = 0
        self.tightens = self.settled = self.special = False

    # -- reading ---------------------------------------------------------------------------------

    @property
    def deadline(self) -> Instant:
        """Monotonic instant at which the work is cancelled; infinite without one."""
        return self.limit

    @property
    def carried(self) -> Carried:
        """Identity, stage and baggage: its own when it was given any, else those of the scope around."""
        scope: Scope | None = self
        while scope is not None:
            if scope.given is not None:
                return scope.given
            scope = scope.outer
        return ANONYMOUS

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

    def cancel(self, detail: str = "", *, kind: CauseKind = CauseKind.CALLER) -> bool:  # type: ignore[override]
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
        won = Node.cancel(self, cause)
        self.driver.troubles += won
        return won

    def move_deadline(self, at: Instant) -> Instant:
        """Move the deadline to the monotonic instant `at`, no later than the parent's; the new one.

        Grace that is kept for shields stays kept. Scopes below follow, none beyond its own wish.

        Raises:
            UsageError: the scope is not open, or the call comes from another thread.
            ValueError: `at` is not a number.
        """
        self._check_loop("move_deadline")
        if at != at:
            raise ValueError("a deadline must be a number, got nan")
        if self.outcome is not None or self.parent is None:
            raise UsageError(f"scope '{self.name}' is not open, so its deadline cannot move")
        self.at, self.wish = at, NEVER
        self.driver.settle()
        self._follow()
        return self.limit

    def _follow(self) -> None:
        """Take the limit that the parent's, or the own wish, has become."""
        assert self.parent is not None
        wished = min(self.at, self.opened_at + self.wish)
        if self.keep:
            wished = min(wished, self.parent.limit - self.keep)
        limit = min(wished, self.parent.limit) - self.kept
        self.retime(limit, limit < self.parent.limit)
        for node in tuple(self.children or ()):
            if isinstance(node, Scope):
                node._follow()

    def retime(self, limit: Instant, tightens: bool) -> None:
        """Have another limit, and tell the timers."""
        if self.tightens:
            self.driver.timers.discard(self, self.limit)
        self.limit, self.tightens = limit, tightens
        if tightens and limit != NEVER:
            self.driver.timers.add(self, limit)

    def lift(self) -> None:
        """Take away the deadline: what it was for is there, and the rest is not bounded by it."""
        self.at = self.wish = NEVER
        self.retime(self.parent.limit if self.parent is not None else NEVER, False)

    def _check_loop(self, call: str) -> None:
        if self.driver is _NOT_ENTERED:
            raise UsageError(f"scope '{self.name}' is not entered, so it cannot {call}")
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self.driver.loop:
            raise UsageError(
                f"{call}() of scope '{self.name}' was called from another thread or loop; "
                f"use loop.call_soon_threadsafe(scope.{call}) with the loop of the scope"
            )

    # -- entering --------------------------------------------------------------------------------

    async def __aenter__(self) -> Scope:
        task = _current_task()
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
            if self.driver is not _NOT_ENTERED:
                raise self._used_before()
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
                self._entered_in_generator(frame)
        return self

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
        if self.driver is not _NOT_ENTERED:
            raise self._used_before()
        loop = task.get_loop()
        driver = outer.driver if outer is not None and outer.driver.loop is loop else driver_of(loop)
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

    def settle(self) -> None:
        """Be listed in the tree, and known to the timers."""
        if not self.settled:
            self.settled = True
            if self.parent is not None and self.parent.outcome is not None:
                self._escape(self.parent)  # left in the wrong order
            self.link()
            if self.tightens:
                self.driver.timers.add(self, self.limit)

    def _escape(self, parent: Node) -> None:
        self.origin = self.path
        self.parent = self.driver.root
        self.tightens = self.limit != NEVER
        self.driver.counts["escaped"] += 1

    def _used_before(self) -> UsageError:
        return UsageError(f"scope '{self.name}' was entered before; make a new one for each use")

    def refused(self, refusal: Refusal, now: Instant) -> ScopeEnded:
        """The error for a scope that was not opened: the cause that is in force above, if any."""
        self.outcome = Outcome.REFUSED
        cause = self.parent.reached() if self.parent is not None else None
        if cause is not None:
            return error_for(cause)
        spent: Scope = self
        while not spent.tightens and isinstance(spent.parent, Scope):
            spent = spent.parent
        ago = now - spent.limit
        late = f" {format_duration(ago)}" if 0 <= ago < NEVER else ""
        detail = f"spent{late} before '{self.name}' was entered, so its body did not run"
        cause = spent.cause_of(CauseKind.DEADLINE, now, detail)
        if spent is not self:
            # Nobody gave the loop a chance to notice: the one whose limit it is ends now.
            spent.driver.begin(spent, cause)
        return error_for(spent.cause or cause)

    # -- leaving ---------------------------------------------------------------------------------

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        driver = self.driver
        if (
            self.settled
            or exc is not None
            or driver.troubles
            or (self.tightens and self.limit <= driver.now())
        ):
            self.leave(exc)
            return
        # The same as `leave`, unrolled: nobody has ever looked at it.
        if AMBIENT.get() is self:
            AMBIENT.set(self.outer)
        self.outcome = _DONE
        young = driver.young
        if young and young[-1] is self:
            young.pop()

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
            self.cancel_node(self.cause_of(CauseKind.DEADLINE, now, "noticed when the block ended"))
            driver.counts[f"cancelled.{CauseKind.DEADLINE}"] += 1
        if self.cause is not None or self.delivered:
            self._leave_cancelled(exc)
            return
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
        raise error_for(cause) from exc

    def _pass_on(self) -> None:
        """A scope above that was cancelled meanwhile had to wait for this one: now it is its turn."""
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

    def shut(self, outcome: Outcome) -> None:
        """Close the node, and see to children that are still open."""
        if self.children:
            self.driver.settle()
        if self.cause is not None and self.outcome is None:
            self.driver.troubles -= 1
        reached = self.reached()
        for node in self.close(outcome):
            self.driver.troubles += reached is not None and node.cause is reached
            self.driver.counts["escaped"] += 1
            if isinstance(node, Scope) and node.tightens:
                node.driver.timers.add(node, node.limit)

    def task_done(self, task: asyncio.Task[Any]) -> None:
        """Close with the task that the scope was made for."""
        if self.tightens:
            self.driver.timers.discard(self, self.limit)
        if task.cancelled():
            self.shut(Outcome.CANCELLED)
        else:
            self.shut(_DONE if task.exception() is None else Outcome.FAILED)

    # -- plain functions -------------------------------------------------------------------------

    def __enter__(self) -> Scope:
        self._refuse_in_coroutine()
        if self.driver is not _NOT_ENTERED:
            raise self._used_before()
        outer = AMBIENT.get()
        self.driver = driver = outer.driver if outer is not None else _thread_driver()
        now = driver.now()
        # The tree and the timers belong to the thread of the loop. A scope of a plain function takes
        # its limit from there, and is a tree of its own.
        stub = Node("thread")
        stub.open_root(now)
        if outer is not None:
            self.outer, self.origin = outer, outer.path
            stub.limit, stub.cause = outer.limit, outer.reached()
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
            raise DeadlineExceeded(self.cause_of(CauseKind.DEADLINE, now, "a plain function ran on"))
        self.close(_DONE if exc is None else outcome_of(exc))

    # -- async generators ------------------------------------------------------------------------

    def _entered_in_generator(self, frame: FrameType) -> None:
        back = frame.f_back
        if back is None or back.f_globals.get("__name__") != "contextlib":
            self.generator = frame.f_code
        # else an @asynccontextmanager: what runs while it is suspended is its body

    def suspended_in_generator(self) -> bool:
        """Whether the generator that entered this scope is suspended, so that its consumer runs."""
        if self.generator is None or self.task is None:
            return False
        chain = frames_of(self.task.get_coro())
        return all(code is not self.generator for code, _ in chain)


# A forked child works for nobody: the request of its parent is the parent's.
os.register_at_fork(after_in_child=lambda: AMBIENT.set(None))


def ambient() -> Scope | None:
    """The innermost scope that is open here, or none."""
    scope = AMBIENT.get()
    while scope is not None and scope.outcome is not None:
        scope = scope.outer
    return scope


class _Thread:
    driver: Driver | None = None


def _thread_driver() -> Driver:
    """A driver for plain functions that run without any loop around them."""
    if _Thread.driver is None:
        loop = asyncio.new_event_loop()
        loop.close()
        _Thread.driver = Driver(loop)
    return _Thread.driver


def error_for(cause: Cause) -> ScopeEnded:
    """The error of a scope that ended because of `cause`."""
    return DeadlineExceeded(cause) if cause.kind is CauseKind.DEADLINE else Cancelled(cause)


def outcome_of(exc: BaseException) -> Outcome:
    """How a scope ended that `exc` left."""
    return Outcome.CANCELLED if isinstance(exc, asyncio.CancelledError) else Outcome.FAILED
