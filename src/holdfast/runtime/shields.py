"""Tells whether a task is inside an anyio shield.

httpcore, Starlette and anyio's worker threads put their clean-up under `CancelScope(shield=True)`.
A native `task.cancel()` goes through such a shield and breaks what it protects, for example a
connection pool, for ever. So the delivery asks here first and waits, bounded.

anyio is looked up among the modules that are loaded already and never imported: where it is not
loaded there is no shield to respect.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any, Final

__all__ = ["frames_of", "in_worker_thread", "shield_mark", "shielded_within"]

_BACKEND: Final = "anyio._backends._asyncio"
_THREAD_CALLS: Final = frozenset({"run_sync_in_worker_thread"})
_MAX_FRAMES: Final = 256


def _innermost(task: asyncio.Task[Any]) -> Any:
    backend = sys.modules.get(_BACKEND)
    if backend is None:
        return None
    states: Mapping[asyncio.Task[Any], Any] | None = getattr(backend, "_task_states", None)
    state = None if states is None else states.get(task)
    return getattr(state, "cancel_scope", None)


def shield_mark(task: asyncio.Task[Any]) -> object:
    """The anyio cancel scope that `task` is in now; shields outside of it are not ours to respect."""
    return _innermost(task)


def shielded_within(task: asyncio.Task[Any], mark: object) -> bool:
    """Whether `task` is inside an anyio shield that was entered after `mark` was taken."""
    scope = _innermost(task)
    while scope is not None and scope is not mark:
        if getattr(scope, "shield", False):
            return True
        scope = getattr(scope, "_parent_scope", None)
    return False


def frames_of(awaitable: Any) -> Iterator[tuple[CodeType, int]]:
    """Code and line of every suspended frame of a coroutine, outermost first."""
    for _ in range(_MAX_FRAMES):
        for prefix in ("cr", "ag", "gi"):
            frame = getattr(awaitable, prefix + "_frame", None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
            inner = getattr(awaitable, prefix + ("_yieldfrom" if prefix == "gi" else "_await"), None)
            if inner is not None:
                break
        else:
            return
        awaitable = inner


def in_worker_thread(task: asyncio.Task[Any]) -> bool:
    """Whether `task` waits for a function that runs in a worker thread.

    To cancel it would free the thread's place in its limiter while the thread is still busy.
    """
    return any(code.co_name in _THREAD_CALLS for code, _ in frames_of(task.get_coro()))
