"""What is to be done at the end: of the process, and of one request.

Rule 1. Exactly once, however it ends: done, failed, cancelled, or spent.
Rule 2. An error is told and changes nothing: not the response, not the hooks that are left.
Rule 3. Bounded. What waits at the end of a request goes on by itself, under the process, with the
        identity of the request.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from holdfast.domain.cause import Cause
from holdfast.domain.errors import UsageError
from holdfast.domain.instant import Duration
from holdfast.domain.tree import Outcome
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.lifecycle.shelter import name_of, sheltered, why
from holdfast.runtime.scope import AMBIENT, ambient

__all__ = ["AtEnd", "at_end", "request_scope"]

_log: Final = logging.getLogger("holdfast.lifecycle")

AtEnd: TypeAlias = (
    Callable[[Outcome, Cause | None], object] | Callable[[Outcome, Cause | None], Awaitable[object]]
)
"""Is called with how the request ended, and why, where there is a cause."""


def at_end(callback: AtEnd, *, timeout: Duration = 5.0) -> None:
    """Call `callback` when the present request ends, however it ends.

    The request is the outermost scope around this call that hangs right below the process (or below
    a worker of the host). A plain function is called in place, as soon as the scope has closed; a
    coroutine runs on its own for `timeout` seconds at most. Those registered last come first.

    Raises:
        UsageError: there is no scope around this call.
    """
    scope = request_scope()
    if scope is None:
        raise UsageError(
            "at_end() was called outside of a request; call it below `async with "
            "holdfast.timeout(...)`, or for the process use host.at_exit()"
        )
    closer = _Closer(callback, timeout)
    driver = scope.driver
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is driver.loop:
        _register(scope, closer)
    else:  # a plain function in a thread, for a handler that waits for it
        driver.loop.call_soon_threadsafe(_register, scope, closer)


def request_scope() -> HostedNode | None:
    """The scope of the present request, or none."""
    scope = ambient()
    found: HostedNode | None = None
    while scope is not None:
        if scope.outcome is None and scope.task is not None:
            if scope.bounds:
                break
            found = scope
        scope = scope.outer
    return found


def _register(scope: HostedNode, closer: _Closer) -> None:
    if scope.outcome is not None:  # it ended while the call came over from its thread
        closer(scope)
        return
    scope.settle()  # one that nobody has looked at would be left without its closers
    if scope.closers is None:
        scope.closers = []
    scope.closers.append(closer)


class _Closer:
    """One callback; called by the scope when it has closed."""

    def __init__(self, callback: AtEnd, timeout: Duration) -> None:
        self.callback = callback
        self.timeout = timeout

    def __call__(self, scope: HostedNode) -> None:
        outcome = scope.outcome or Outcome.DONE
        cause = scope.cause or scope.reached()
        token = AMBIENT.set(scope)  # closed, but its identity can still be read
        try:
            result = self.callback(outcome, cause)
        except (Exception, asyncio.CancelledError) as error:
            self._failed(error)
        else:
            if inspect.isawaitable(result):
                self._go_on(scope, result)
        finally:
            AMBIENT.reset(token)

    def _go_on(self, scope: HostedNode, rest: Awaitable[Any]) -> None:
        async def bounded() -> None:
            try:
                await rest
            except Exception as error:
                self._failed(error)

        driver = scope.driver
        task, _ = sheltered(
            bounded,
            name=f"at_end {name_of(self.callback)}",
            driver=driver,
            until=driver.now() + self.timeout,
            origin=scope,
        )
        driver.closing.add(task)
        task.add_done_callback(self._done)
        task.add_done_callback(driver.closing.discard)

    def _done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._failed(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        _log.error(
            "at the end of a request '%s' failed: %s",
            name_of(self.callback),
            why(error),
            exc_info=error,
        )
