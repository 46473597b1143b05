"""Waiting for a process, without being cut short by its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.domain.instant import NEVER
from holdfast.domain.lifecycle.phase import StopAsked
from holdfast.runtime.hosted import HostedNode
from holdfast.runtime.lifecycle.process import Process
from holdfast.runtime.scope import ambient

__all__ = ["patiently"]


async def patiently(process: Process, done: Callable[[], bool]) -> None:
    """Wait for `done()`; whoever cancels this has the process stopped first."""
    mine = _outermost()
    cancelled: asyncio.CancelledError | None = None
    if mine is not None:
        process.waiting.add(mine)
    try:
        while not (done() or process.ended.done()):
            try:
                await process.pause(NEVER)
            except asyncio.CancelledError as error:
                if not _is_own(process, mine):
                    process.post(StopAsked("the program", "the task that waits was cancelled"))
                cancelled, done = error, process.ended.done
    finally:
        if mine is not None:
            process.waiting.discard(mine)
            mine.deaf = False
    if cancelled is not None:
        raise cancelled


def _is_own(process: Process, mine: HostedNode | None) -> bool:
    """Whether a cancellation here is that of the stop itself, coming from further above."""
    cause = process.driver.root.cause
    return mine is not None and cause is not None and mine.reached() is cause


def _outermost() -> HostedNode | None:
    """The outermost scope that the running task hosts, of those around this call."""
    scope = ambient()
    if scope is None or scope.task is not asyncio.current_task():
        return None
    while scope.outer is not None and scope.outer.task is scope.task:
        scope = scope.outer
    return scope
