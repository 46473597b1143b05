"""Pools whose places are waited for no longer than what is left, for threads and for the loop.

The class of a pool, and that of its queue, is derived from what it was, and put in its place: so
`Engine.dispose()`, which makes a new pool of the same class, keeps it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sqlalchemy import exc

from holdfast.adapters.sqlalchemy.errors import PoolWait
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import Phase, Trail
from holdfast.runtime.ambient import remaining
from holdfast.runtime.scope import ambient

__all__ = ["bind_pool", "unbind_pool"]

_PLAIN: Final = "holdfast_plain"
_AHEAD: Final[Duration] = 0.001
"""Seconds that a wait ends before the deadline, so that its error is that of the pool."""


def _bound_queue(plain: Any) -> type:
    def get(queue: Any, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            left = remaining()
            if left != NEVER:
                left = max(0.0, left - _AHEAD)
                timeout = left if timeout is None else min(timeout, left)
        return plain.get(queue, block, timeout)

    return _derived(plain, {"get": get})


def _bound_pool(plain: Any, refuse_below: Duration) -> type:
    def do_get(pool: Any) -> Any:
        here = ambient()
        if here is None:
            return plain._do_get(pool)
        begun = here.driver.now()
        if here.limit - begun <= refuse_below:
            PoolWait("pool").admit(refuse_below)
        try:
            return plain._do_get(pool)
        except exc.TimeoutError as error:
            wait = _wait(begun)
            if wait.left > 2 * _AHEAD:
                raise
            raise wait.over(f"no connection was free, {_said(pool)}") from error
        except asyncio.CancelledError:
            wait = _wait(begun)
            target = f"a pool of connections ({_said(pool)})"
            trail = Trail(target, begun, wait.limit, client="sqlalchemy")
            trail.begin(Phase.POOL, begun)
            here.blame(trail)  # the error of the scope that is cancelled will tell
            raise

    body: dict[str, Any] = {"_do_get": do_get, _PLAIN: plain}
    if hasattr(plain, "_queue_class"):
        body["_queue_class"] = _bound_queue(plain._queue_class)
    return _derived(plain, body)


def _derived(plain: type, body: dict[str, Any]) -> type:
    """A class whose objects are laid out as those of `plain`, and that is called the same.

    The name of a pool's logger is made of that of its class.
    """
    same = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__slots__": ()}
    return type(plain.__name__, (plain,), {**same, **body})


def _wait(begun: Instant) -> PoolWait:
    wait = PoolWait("pool")
    wait.begun = begun
    return wait


def _said(pool: Any) -> str:
    try:
        size, overflow = pool.size(), max(0, pool._max_overflow)
        return f"pool size {size}, overflow {overflow}, {pool.checkedout()} checked out"
    except AttributeError:
        return str(pool.status())


def bind_pool(pool: Any, refuse_below: Duration) -> None:
    """Bound the waits for places in `pool`.

    Args:
        pool: of an engine, not bounded yet.
        refuse_below: seconds; with less left nothing is waited for.
    """
    bound: Any = _bound_pool(type(pool), refuse_below)
    pool.__class__ = bound
    if hasattr(bound, "_queue_class"):
        pool._pool.__class__ = bound._queue_class


def unbind_pool(pool: Any) -> None:
    """Undo `bind_pool`; nothing happens where there is nothing to undo."""
    plain: Any = getattr(pool, _PLAIN, None)
    if plain is None:
        return
    pool.__class__ = plain
    if hasattr(plain, "_queue_class"):
        pool._pool.__class__ = plain._queue_class
