"""Work of the host itself: out of reach of what ends the process, and bounded all the same."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.driver import Driver
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.scope import AMBIENT
from holdfast.runtime.shield import Shield

__all__ = ["Shelter", "call", "name_of", "sheltered", "why"]

T = TypeVar("T")


class Shelter(Shield):
    """A shield with an end of its own, that can be brought forward."""

    def __init__(self, name: str, until: Instant) -> None:
        super().__init__(name, NEVER)
        self.until = until

    def shield_limit(self, now: Instant, grace: Duration) -> Instant:
        """See `Node`; the end of the whole process bounds it, and its own."""
        return min(self.driver.root.end, self.until)

    def shorten(self, now: Instant) -> None:
        """A cancellation outside changes nothing: the end is set already."""

    def end_by(self, at: Instant) -> None:
        """End at `at`, if that is sooner."""
        self.until = min(self.until, at)
        if self.outcome is None and self.parent is not None and self.until < self.limit:
            self.retime(self.until, True)
            for node in tuple(self.children or ()):
                if isinstance(node, HostedNode):
                    node.follow()


def sheltered(
    work: Callable[[], Awaitable[T]],
    *,
    name: str,
    driver: Driver,
    until: Instant,
    context: contextvars.Context | None = None,
    origin: HostedNode | None = None,
) -> tuple[asyncio.Task[T], Shelter]:
    """Run `work()` in a task and a shelter of its own, until `until` at the latest.

    Args:
        work: is called in the task.
        name: of the task and the scope.
        driver: of the running loop.
        until: monotonic instant at which it is cancelled.
        context: variables that it sees; a copy of the present ones by default.
        origin: the scope whose identity it keeps, and that it came from.
    """
    shelter = Shelter(name, until)
    if origin is not None:
        shelter.given, shelter.origin = origin.carried, origin.path

    async def body() -> T:
        AMBIENT.set(None)
        async with shelter:
            return await work()

    found = contextvars.copy_context() if context is None else context.copy()
    task = driver.loop.create_task(body(), name=name, context=found)
    driver.kept.add(task)
    task.add_done_callback(driver.kept.discard)
    return task, shelter


async def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a plain or a coroutine function; wait for it where there is something to wait for."""
    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result


def name_of(function: Callable[..., object]) -> str:
    """A name for people."""
    found = getattr(function, "__qualname__", None) or getattr(
        getattr(function, "func", None), "__qualname__", None
    )
    return str(found or type(function).__name__).replace("<locals>.", "").replace("/", "_")


def why(error: BaseException) -> str:
    """One line that says how something failed."""
    if isinstance(error, ScopeEnded):
        return error.cause.line()
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
