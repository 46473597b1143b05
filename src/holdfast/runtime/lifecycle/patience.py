"""Waiting for a process, without being cut short by its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.domain.cause import Cause
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
    seen: Cause | None = None
    if mine is not None:
        process.waiting.add(mine)
    try:
        while not (done() or process.ended.done()):
            try:
                await process.pause(NEVER)
            except asyncio.CancelledError as error:
                cause = mine.reached() if mine is not None else None
                if cause is None or cause not in (seen, process.driver.root.cause):
                    what = "the task that waits was cancelled"
                    detail = f"{what}: {cause.line()}" if cause is not None else what
                    process.post(StopAsked("the program", detail))
                cancelled, done, seen = error, process.ended.done, cause
                if mine is not None and cause is not None:
                    mine.deaf = True  # it has been told, and ends as soon as it can
    finally:
        if mine is not None:
            process.waiting.discard(mine)
            mine.deaf = False
    if cancelled is not None:
        raise cancelled


def _outermost() -> HostedNode | None:
    """The outermost scope that the running task hosts, of those around this call."""
    scope = ambient()
    if scope is None or scope.task is not asyncio.current_task():
        return None
    while scope.outer is not None and scope.outer.task is scope.task:
        scope = scope.outer
    return scope
