"""Tells whether a task is inside an anyio shield.

httpcore, Starlette and anyio's worker threads put their clean-up under `CancelScope(shield=True)`.
A native `task.cancel()` goes through such a shield and breaks what it protects, for example a
connection pool, for ever. So the delivery asks here first and waits, bounded.

anyio is looked up among the modules that are loaded already and never imported: where it is not
loaded there is no shield to respect.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from types import AsyncGeneratorType, CodeType
from typing import Any, Final, cast
from weakref import ref

__all__ = [
    "anyio_is_loaded",
    "anyio_shield",
    "frames_of",
    "in_worker_thread",
    "shield_mark",
    "shielded_within",
]

_BACKEND: Final = "anyio._backends._asyncio"
_THREAD_CALLS: Final = frozenset({"run_sync_in_worker_thread"})
_MAX_FRAMES: Final = 256


_modules: Final = sys.modules


def anyio_is_loaded() -> bool:
    """Whether there can be any shield at all."""
    return _BACKEND in _modules


def shield_mark(task: asyncio.Task[Any]) -> Any:
    """The anyio cancel scope that `task` is in now; shields around it are not ours to respect."""
    backend = _modules.get(_BACKEND)
    if backend is None:
        return None
    # `.data` of the weak dictionary, because this runs for every scope and its own `get` is Python.
    state = backend._task_states.data.get(ref(task))
    return None if state is None else state.cancel_scope


def anyio_shield(task: asyncio.Task[Any]) -> Any:
    """An anyio shield, entered, when `task` is inside an anyio scope; none otherwise.

    anyio cancels again and again what is inside a cancelled scope, for example all that runs under
    a middleware of Starlette; only a shield of its own kind holds that back.
    """
    if shield_mark(task) is None:
        return None
    scope = _modules["anyio"].CancelScope(shield=True)
    scope.__enter__()
    return scope


def shielded_within(task: asyncio.Task[Any], mark: object) -> bool:
    """Whether `task` is inside an anyio shield that was entered after `mark` was taken."""
    scope = shield_mark(task)
    while scope is not None and scope is not mark:
        if getattr(scope, "shield", False):
            return True
        scope = getattr(scope, "_parent_scope", None)
    return False


def frames_of(awaitable: Any) -> Iterator[tuple[CodeType, int]]:
    """Code and line of every suspended frame of a coroutine, outermost first."""
    for _ in range(_MAX_FRAMES):
        if awaitable is None:
            return
        for prefix, link in (("cr", "cr_await"), ("ag", "ag_await"), ("gi", "gi_yieldfrom")):
            frame = getattr(awaitable, prefix + "_frame", None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
                awaitable = getattr(awaitable, link, None)
                break
        else:
            awaitable = _generator_behind(awaitable)


def _generator_behind(awaitable: Any) -> Any:
    """The async generator that an `asend`, `athrow` or `anext` object drives, or the coroutine that
    was awaited by Cython (grpc is written in it); none for others.

    Those objects have no attribute that leads on, so the garbage collector is asked.
    """
    if type(awaitable).__name__ == "coroutine_wrapper":
        return next((i for i in gc.get_referents(awaitable) if asyncio.iscoroutine(i)), None)
    for _ in range(2):
        if not type(awaitable).__name__.startswith(("async_generator_", "anext_")):
            return None
        inner = gc.get_referents(awaitable)
        for found in inner:
            if isinstance(found, AsyncGeneratorType):
                return cast("Any", found)
        awaitable = next((i for i in inner if type(i).__name__.startswith("async_gen")), None)
    return None


def in_worker_thread(task: asyncio.Task[Any]) -> bool:
    """Whether `task` waits for a function that runs in a worker thread.

    To cancel it would free the thread's place in its limiter while the thread is still busy.
    """
    return any(code.co_name in _THREAD_CALLS for code, _ in frames_of(task.get_coro()))
