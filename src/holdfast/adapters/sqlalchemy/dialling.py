"""How an instrumented engine connects: within what is left, and by a driver of ours where told.

The dialect's way to connect is covered, not an event: what listeners of the application put into
the parameters, a password perhaps, is there then, whoever came first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import exc

from holdfast.adapters.sqlalchemy.errors import Dial, ours_behind, ours_for
from holdfast.domain.instant import NEVER

__all__ = ["UNHEARD_MS", "dialled"]

UNHEARD_MS: Final = 10_000
"""Milliseconds that the kernel goes on sending without hearing anything from the server's host,
where nothing else was said (`tcp_user_timeout`). It holds as long as the connection lives."""
_LIBPQ: Final = frozenset({"psycopg", "psycopg2"})


def dialled(
    dialect: Any, plain: Callable[..., Any], kind: Any, args: Any, options: dict[str, Any]
) -> Any:
    """A new connection, as the dialect has them.

    Args:
        dialect: of the engine.
        plain: what the dialect would do.
        kind: class of the driver's connections; none for what the dialect takes.
        args: for the driver.
        options: for the driver.

    Raises:
        DeadlineExceeded: what was left is over.
    """
    bounds = Dial("connect")
    if dialect.driver in _LIBPQ and dialect.name == "postgresql":
        options.setdefault("tcp_user_timeout", UNHEARD_MS)
        if bounds.limit != NEVER:
            # libpq counts in seconds, and takes less than two for two.
            own = float(options.get("connect_timeout") or math.inf)
            options["connect_timeout"] = max(2, math.ceil(min(own, bounds.left)))
    try:
        if kind is None:
            return plain(dialect, *args, **options)
        if dialect.driver == "asyncpg":
            return plain(dialect, *args, **{"connection_class": kind, **options})
        if dialect.is_async:
            return plain(dialect, *args, **{"async_creator_fn": kind.connect, **options})
        return kind.connect(*args, **options)
    except asyncio.CancelledError:
        bounds.interrupted()
        raise
    except Exception as error:
        if bounds.left > 0 or ours_behind(error) is not None:
            raise
        raise ours_for(bounds.over(str(error)), _theirs(dialect, error)) from error


def _theirs(dialect: Any, error: Exception) -> Any:
    base = dialect.loaded_dbapi.Error
    if not isinstance(error, base):
        return None
    return exc.DBAPIError.instance(None, None, error, base, dialect=dialect)
