"""How a pool of workers moves its items: in, on, out. The rules are those of `runtime.workers`.

Decisions about who is next are in `domain.resilience.waiting`; this performs them.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import InsufficientBudget, ScopeEnded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration
from holdfast.domain.resilience.waiting import Order, Waiting
from holdfast.domain.tree import Outcome
from holdfast.runtime.hosted import HostedNode, error_for
from holdfast.runtime.scope import Scope, ambient
from holdfast.runtime.tasks import spawn
from holdfast.runtime.timers import Alarm
from holdfast.runtime.workers_items import Item, awaited, holdable

__all__ = ["Floor"]

_log: Final = logging.getLogger("holdfast.workers")
_KEPT_WAITS: Final = 1024


class Floor:
    """Where the items of one pool wait and are worked on.

    Attributes:
        scope: of the pool.
    """

    def __init__(self, scope: Scope, count: int, order: Order, most: int, detached: bool) -> None:
        self.scope = scope
        self._detached = detached
        self._count = count
        self._most = most
        self._waiting: Waiting[Item] = Waiting(order)
        self._running: set[Item] = set()
        self._putters: deque[asyncio.Future[None]] = deque()
        self._of_scopes: dict[HostedNode, dict[Item, None]] = {}
        self._idle: asyncio.Future[None] | None = None
        self._alarm: Alarm | None = None
        self._open = False
        self._done = self._failed = self._cancelled = self._dropped = 0
        self._waits: deque[Duration] = deque(maxlen=_KEPT_WAITS)

    # -- handing over ----------------------------------------------------------------------------

    def _check(self) -> None:
        cause = self.scope.reached()
        if cause is not None:
            raise error_for(cause)
        if not self._open:
            raise UsageError(f"pool '{self.scope.name}' is not open, so nothing can be put into it")
        if asyncio.get_running_loop() is not self.scope.driver.loop:
            raise UsageError(
                f"pool '{self.scope.name}' belongs to another loop; "
                "use loop.call_soon_threadsafe() of that one"
            )

    def _full(self) -> bool:
        return len(self._waiting) >= self._most and len(self._running) >= self._count

    async def _place(self) -> None:
        """Wait until there is a place, in the order of arrival."""
        again = False
        while self._full():
            putter = self.scope.driver.loop.create_future()
            if again:
                self._putters.appendleft(putter)  # another took the place: it is still our turn
            else:
                self._putters.append(putter)
            again = True
            try:
                await putter
            except BaseException:
                # The place that it may have got already is for the next one.
                if putter.done() and not putter.cancelled() and not self._full():
                    self._wake()
                elif putter in self._putters:
                    self._putters.remove(putter)
                raise
            self._check()

    def _wake(self) -> None:
        while self._putters:
            putter = self._putters.popleft()
            if not putter.done():
                putter.set_result(None)
                return

    def _hand_over(
        self, begin: Callable[[], Awaitable[Any]], work: object, since: Instant, quiet: bool
    ) -> asyncio.Future[Any]:
        scope = self.scope
        driver = scope.driver
        here = ambient()
        limit = scope.limit
        if self._detached:
            here = None
        elif here is not None and here.limit < limit:
            limit = here.limit
        name = getattr(work, "__name__", None) or type(work).__name__
        item = Item(begin, name, since, limit, driver.loop.create_future(), quiet)
        if limit <= driver.now():
            raise self._in_vain(item)
        if here is not None and here is not scope and here.task and here.driver is driver:
            self._tether(item, here)
        item.handle.add_done_callback(partial(self._let_go, item))
        if len(self._running) < self._count and not self._waiting:
            self._start(item)
        else:
            item.context = contextvars.copy_context()
            item.number = self._waiting.push(item, limit)
            self._set_alarm()
        return item.handle

    def _tether(self, item: Item, here: HostedNode) -> None:
        of_scope = self._of_scopes.get(here)
        if of_scope is None:
            here.settle()  # one that nobody has looked at would be left without its closers
            of_scope = self._of_scopes[here] = {}
            here.closers = [*(here.closers or ()), self._scope_closed]
        of_scope[item] = None
        item.here = here

    # -- leaving the queue -----------------------------------------------------------------------

    def _next(self) -> None:
        try:
            self._begin_waiting()
        except BaseException:
            # The end of the program came out of one item. The others still have to come to theirs.
            self.scope.driver.loop.call_soon(self._next)
            raise
        self._make_room()

    def _begin_waiting(self) -> None:
        self._expire()
        while self._waiting and len(self._running) < self._count:
            item = self._waiting.pop()
            if item is not None:
                item.number = -1
                cause = None if item.here is None else item.here.reached()
                if cause is None:
                    self._start(item)
                else:
                    self._drop(item, error_for(cause))

    def _make_room(self) -> None:
        free = self._most - len(self._waiting) + self._count - len(self._running)
        while free > 0 and self._putters:
            self._wake()
            free -= 1
        idle = self._idle
        if idle is not None and not (self._running or self._waiting or idle.done()):
            idle.set_result(None)

    def _expire(self) -> None:
        now = self.scope.driver.now()
        if self._waiting.earliest() <= now:
            for item in self._waiting.expired(now):
                item.number = -1
                self.scope.driver.counts["workers.expired"] += 1
                self._drop(item, self._in_vain(item))

    def _set_alarm(self) -> None:
        """Look when the first of those that wait expires, though no worker may be free then."""
        first = self._waiting.earliest()
        alarm, driver = self._alarm, self.scope.driver
        if first != NEVER and (alarm is None or first < alarm.limit):
            if alarm is not None:
                driver.drop(alarm)
            self._alarm = driver.alarm(first, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._expire()
        self._make_room()
        self._set_alarm()

    def _in_vain(self, item: Item) -> InsufficientBudget:
        now = self.scope.driver.now()
        waited = now - item.since
        detail = f"waited {format_duration(waited)} in the queue, so it was not begun"
        path = f"{self.scope.path}/{item.name}"
        hop = self.scope.cause_of(CauseKind.DEADLINE, now).hop
        return InsufficientBudget(
            Cause(CauseKind.DEADLINE, path, hop, now, item.limit - item.since, waited, detail)
        )

    def _drop(self, item: Item, error: ScopeEnded) -> None:
        self._dropped += 1
        self._finish(item, error, known=True)

    # -- working ---------------------------------------------------------------------------------

    def _start(self, item: Item) -> None:
        item.waited = self.scope.driver.now() - item.since
        self._waits.append(item.waited)
        self._running.add(item)
        try:
            context, item.context = item.context, None
            if context is None:
                self._spawn(item)
            else:
                context.run(self._spawn, item)
        except BaseException as error:
            # Of what should have made the coroutine, or the pool is over. It is no business of who
            # is here: another item that has ended, or who submitted this one.
            self._running.discard(item)
            if isinstance(error, ScopeEnded):
                self._drop(item, error)
            else:
                self._fail(item, error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise

    def _spawn(self, item: Item) -> None:
        made = item.begin()
        if not asyncio.iscoroutine(made):
            made = awaited(made, item.name)
        _, item.scope = spawn(
            made,
            name=item.name,
            parent=self.scope,
            driver=self.scope.driver,
            until=item.limit,
            done=partial(self._ended, item),
            inside=True,
        )

    def _ended(self, item: Item, task: asyncio.Task[Any]) -> None:
        self._running.discard(item)
        try:
            self._account(item, task)
        finally:
            self._next()

    def _account(self, item: Item, task: asyncio.Task[Any]) -> None:
        handle, scope = item.handle, item.scope
        error = None if task.cancelled() else task.exception()
        cause = None if scope is None else scope.reached()
        if task.cancelled() and cause is None and not task.cancelling():
            # Nobody cancelled it: it looked at something of another that was.
            try:
                task.result()
            except asyncio.CancelledError as cancelled:
                self._fail(item, cancelled)
        elif task.cancelled() or (isinstance(error, ScopeEnded) and cause is not None):
            self._cancelled += 1
            if error is None and cause is not None:
                error = error_for(cause)
            if error is not None:
                if item.waited > 0:
                    waited = format_duration(item.waited)
                    error.add_note(f"before it began it had waited {waited} in the queue")
                self._finish(item, error, known=True)
            else:
                self._untether(item)
                handle.cancel()
        elif error is not None:
            self._fail(item, error)
        else:
            self._done += 1
            self._untether(item)
            if not handle.done():
                handle.set_result(task.result())

    def _fail(self, item: Item, error: BaseException) -> None:
        self._failed += 1
        self._finish(item, holdable(error, item.name))

    def _finish(self, item: Item, error: BaseException, known: bool = False) -> None:
        self._untether(item)
        if not item.handle.done():
            item.handle.set_exception(error)
            if item.quiet or known:
                # Counted or logged: asyncio must not report it too when nobody looks.
                item.handle.exception()
        if item.quiet:
            ended = isinstance(error, ScopeEnded)
            _log.log(
                logging.WARNING if ended else logging.ERROR,
                "'%s' in the pool '%s' %s: %s" if ended else "'%s' in the pool '%s' %s: %r",
                item.name,
                self.scope.name,
                "was not done" if ended else "failed",
                error,
                exc_info=None if ended else error,
            )

    def _untether(self, item: Item) -> None:
        if item.here is not None and (of_scope := self._of_scopes.get(item.here)) is not None:
            of_scope.pop(item, None)

    # -- who submitted it has gone ---------------------------------------------------------------

    def _let_go(self, item: Item, handle: asyncio.Future[Any]) -> None:
        if handle.cancelled():
            driver = self.scope.driver
            self._cancel(
                item, self.scope.cause_of(CauseKind.CALLER, driver.now(), "its caller has gone")
            )

    def _scope_closed(self, scope: HostedNode) -> None:
        items = self._of_scopes.pop(scope, {})
        cause = scope.reached()
        if cause is None and scope.outcome is Outcome.CANCELLED:
            what = "the task of its caller was cancelled"
            cause = scope.cause_of(CauseKind.PARENT, scope.driver.now(), what)
        if cause is not None:
            for item in tuple(items):
                self._cancel(item, cause)

    def _cancel(self, item: Item, cause: Cause) -> None:
        if item.number >= 0:
            if self._waiting.remove(item.number) is not None:
                item.number = -1
                self._drop(item, error_for(cause))
                self._make_room()
        elif item in self._running and item.scope is not None:
            self.scope.driver.begin(item.scope, cause)

    # -- the end ---------------------------------------------------------------------------------

    async def _drain(self) -> asyncio.CancelledError | None:
        """Wait for the items. The cancellation that came meanwhile, if any."""
        cancelled: asyncio.CancelledError | None = None
        # The items are what is waited for; a cancellation of the pool itself need not wake us.
        self.scope.deaf = True
        while self._running or self._waiting:
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
        """Cancel the items, unless a cancellation has reached them already."""
        scope = self.scope
        if scope.reached() is None:
            kind, what = CauseKind.SIBLING, f"the block raised {exc!r}"
            if isinstance(exc, asyncio.CancelledError):
                kind, what = CauseKind.PARENT, "the task was cancelled"
            scope.driver.begin(scope, scope.cause_of(kind, scope.driver.now(), what))
        cause = scope.reached()
        for item in self._waiting.clear():
            item.number = -1
            if cause is not None:
                self._drop(item, error_for(cause))
