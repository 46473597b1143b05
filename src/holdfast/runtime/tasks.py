"""Structured children and detached work: the only places that create tasks for others."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Final, TypeVar

from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import ScopeEnded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.tree import Node, Outcome
from holdfast.runtime.driver import Driver, driver_of
from holdfast.runtime.hosted import HostedNode, seconds_of
from holdfast.runtime.scope import AMBIENT, Scope

__all__ = ["TaskGroup", "aside", "detach", "serve", "spawn", "tasks"]

T = TypeVar("T")

_log: Final = logging.getLogger("holdfast.runtime")


def spawn(
    coro: Coroutine[Any, Any, T],
    *,
    name: str,
    parent: Node,
    driver: Driver,
    seconds: Duration = NEVER,
    until: Instant = NEVER,
    origin: HostedNode | None = None,
    done: Callable[[asyncio.Task[Any]], None] | None = None,
    inside: bool = False,
) -> tuple[asyncio.Task[T], Scope]:
    """Run `coro` in a task of its own, under a scope of its own below `parent`.

    The scope exists before the first step, so a cancellation finds it; it closes with the task.

    Args:
        coro: the work.
        name: of the task and of the scope.
        parent: the scope above.
        driver: of the running loop.
        seconds: the budget of the scope.
        until: monotonic instant at which it ends at the latest.
        origin: for detached work: where it came from, instead of the ambient scope.
        done: is called with the task when the scope has closed.
        inside: run `coro` as the body of the scope, so that the task ends with its error.

    Raises:
        ScopeEnded: `parent` is cancelled or spent; `coro` is closed and never runs.
        UsageError: `coro` is not a coroutine.
    """
    if not asyncio.iscoroutine(coro):
        raise UsageError(f"a task needs a coroutine, got {coro!r}; call the function: work()")
    scope = Scope(name, seconds)
    scope.driver = driver
    scope.outer = AMBIENT.get() if origin is None else None
    if origin is not None:
        scope.given, scope.origin = origin.carried, origin.path
    now = driver.now()
    if isinstance(parent, HostedNode) and not parent.settled:
        driver.settle()
    refusal = scope.admit(parent, now, min(now + seconds, until))
    if refusal is not None:
        coro.close()
        raise scope.refused(refusal, now)
    scope.settle()
    context = contextvars.copy_context()
    context.run(AMBIENT.set, scope)
    work = _body(scope, coro) if inside else coro
    try:
        task = driver.loop.create_task(work, name=name, context=context)
    except BaseException:  # of a task factory, or a loop that is closed
        _undo(scope, work, coro)
        raise
    scope.task = task
    scope.done = done
    task.add_done_callback(scope.task_done)
    if inside:
        task.add_done_callback(partial(_body_done, scope, coro))
    return task, scope


def _undo(scope: Scope, *unused: Coroutine[Any, Any, Any]) -> None:
    if scope.tightens:
        scope.driver.timers.discard(scope, scope.limit)
    scope.shut(Outcome.FAILED)
    for coro in unused:
        coro.close()


async def _body(scope: Scope, coro: Coroutine[Any, Any, T]) -> T:
    try:
        result = await coro
    except BaseException as exc:
        scope.leave(exc)
        raise
    scope.leave(None)
    return result


def _body_done(scope: Scope, coro: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> None:
    coro.close()  # of a task that was cancelled before its first step; of others it does nothing
    if task.cancelled() and scope.outcome is Outcome.EXPIRED and scope.cause is not None:
        # Nobody is told of a task that ends like this, and its own error it could not raise.
        _log.warning("task '%s' did not end its work: %s", task.get_name(), scope.cause.line())


def detach(
    coro: Coroutine[Any, Any, T], *, name: str = "detached", timeout: Duration = NEVER
) -> asyncio.Task[T]:
    """Run `coro` beyond the request: it keeps identity and stage, but not deadline or cancellation.

    It runs under the scope of the process, with a link to where it came from, and is kept alive
    until it is done. `timeout` is its own budget in seconds; when that is spent the work is
    cancelled, and the task ends with `DeadlineExceeded`: whoever awaits it is told, and where
    nobody does, asyncio logs it when the task is collected.

    Raises:
        DeadlineExceeded: `timeout` is not positive; `coro` is closed and never runs.
        UsageError: `coro` is not a coroutine.
        TypeError: `timeout` is not a number.
        ValueError: `timeout` is nan.
        RuntimeError: no loop is running.
    """
    driver = driver_of(asyncio.get_running_loop())
    task, _ = spawn(
        coro,
        name=name,
        parent=driver.root,
        driver=driver,
        seconds=_budget(timeout, "detach()"),
        origin=AMBIENT.get(),
        inside=timeout != NEVER,
    )
    driver.kept.add(task)
    task.add_done_callback(driver.kept.discard)
    return task


def _budget(seconds: Duration, call: str) -> Duration:
    wish = seconds_of(seconds, call)
    if wish != wish:
        raise ValueError("a deadline must be a number, got nan")
    return wish


def tasks(name: str = "tasks", *, seconds: Duration = NEVER) -> TaskGroup:
    """A group of children that are all done when its block ends.

    When one fails the others are cancelled with the cause `sibling_failed`, and the block raises an
    `ExceptionGroup` of what failed.
    """
    return TaskGroup(name, seconds)


class TaskGroup:
    """Structured children; see `tasks`."""

    def __init__(self, name: str, seconds: Duration) -> None:
        self.scope = Scope(name, _budget(seconds, "tasks()"))
        self._open = False
        self._children: set[asyncio.Task[Any]] = set()
        self._errors: list[BaseException] = []
        self._idle: asyncio.Future[None] | None = None

    def start(self, coro: Coroutine[Any, Any, T], *, name: str = "") -> asyncio.Task[T]:
        """Run `coro` as a child of the group.

        Raises:
            UsageError: the group's block has not begun or has ended.
            ScopeEnded: the group is cancelled or its limit is spent; `coro` never runs.
        """
        if not self._open:
            if asyncio.iscoroutine(coro):
                coro.close()
            raise UsageError(
                f"task group '{self.scope.name}' is not open, so nothing can start in it"
            )
        label = name or getattr(coro, "__name__", "child")
        scope = self.scope
        task, _ = spawn(coro, name=label, parent=scope, driver=scope.driver, done=self._done)
        self._children.add(task)
        return task

    def cancel(self, detail: str = "") -> bool:
        """Cancel every child and the block itself; see `Scope.cancel`."""
        return self.scope.cancel(detail)

    async def __aenter__(self) -> TaskGroup:
        await self.scope.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self._abort(exc)
        cancelled = await self._drain()
        self._open = False
        if exc is None or isinstance(exc, asyncio.CancelledError):
            self._leave(exc or cancelled)
        elif self._is_own_end(exc):
            if self._errors:
                self._leave(exc)
            self.scope.leave(exc)
        else:
            self._errors.insert(0, exc)
            self._leave(exc)

    def _leave(self, exc: BaseException | None) -> None:
        failed, self._errors = self._errors, []
        ended: ScopeEnded | None = None
        try:
            self.scope.leave(None if failed else exc)
        except ScopeEnded as error:
            ended = error
        if failed:
            raise self._group(failed) from ended
        if ended is not None:
            raise ended from exc
        if isinstance(exc, asyncio.CancelledError):
            raise exc

    def _group(self, failed: list[BaseException]) -> BaseException:
        for error in failed:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                return error
        task = self.scope.task
        recancel = sys.version_info >= (
            3,
            13,
        )  # before, a cancel that is taken back would still come
        if recancel and task is not None and task.cancelling() > self.scope.baseline:
            # Somebody else cancelled us as well; the group must not hide it, nor the count change.
            task.uncancel()
            task.cancel()
        return BaseExceptionGroup(f"task group '{self.scope.name}' failed", failed)

    async def _drain(self) -> asyncio.CancelledError | None:
        """Wait for the children. The cancellation that came meanwhile, if any."""
        cancelled: asyncio.CancelledError | None = None
        # The children are what is waited for; a cancellation of the group itself need not wake us.
        self.scope.deaf = True
        while self._children:
            self._idle = self.scope.driver.loop.create_future()
            try:
                await self._idle
            except asyncio.CancelledError as exc:
                cancelled = exc
                self._abort(exc)
        self._idle = None
        self.scope.deaf = False
        return cancelled

    def _abort(self, exc: BaseException) -> None:
        """Cancel the children, unless a cancellation has reached them already."""
        scope = self.scope
        if scope.reached() is not None:
            return
        if isinstance(exc, asyncio.CancelledError):
            cause = scope.cause_of(CauseKind.PARENT, scope.driver.now(), "the task was cancelled")
        else:
            what = f"the block raised {exc!r}"
            cause = scope.cause_of(CauseKind.SIBLING, scope.driver.now(), what)
        scope.driver.begin(scope, cause)

    def _is_own_end(self, exc: BaseException) -> bool:
        return isinstance(exc, ScopeEnded) and exc.cause is self.scope.reached()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._children.discard(task)
        if not self._children and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        exc = None if task.cancelled() else task.exception()
        if exc is None or self._is_own_end(exc):
            return
        self._errors.append(exc)
        scope = self.scope
        if scope.reached() is None:
            what = f"task '{task.get_name()}' raised {exc!r}"
            scope.driver.begin(scope, scope.cause_of(CauseKind.SIBLING, scope.driver.now(), what))


_aside: set[asyncio.Task[Any]] = set()


def aside(
    coro: Coroutine[Any, Any, T], *, name: str, context: contextvars.Context | None = None
) -> asyncio.Task[T]:
    """Run a servant of the machinery itself: no scope, no inherited context, kept alive.

    For adapters only. Work of users goes through `tasks` or `detach`.

    Args:
        coro: the work.
        name: of the task.
        context: variables that it sees; none by default.
    """
    loop = asyncio.get_running_loop()
    found = contextvars.Context() if context is None else context
    task = loop.create_task(coro, name=name, context=found)
    _aside.add(task)
    task.add_done_callback(_aside_done)
    return task


def serve(
    coro: Coroutine[Any, Any, T],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context | None = None,
) -> asyncio.Task[T]:
    """Run a request for its server, which keeps it alive, and reports its errors.

    For adapters only.

    Args:
        coro: the work.
        loop: of the server.
        context: variables that it sees; those of the caller by default.
    """
    return loop.create_task(coro) if context is None else loop.create_task(coro, context=context)


def _aside_done(task: asyncio.Task[Any]) -> None:
    _aside.discard(task)
    if not task.cancelled() and (exc := task.exception()) is not None:
        _log.error("'%s' failed: %r", task.get_name(), exc, exc_info=exc)
