"""How transactions and connections of an `AsyncEngine` end: within a grace, whoever cancels.

    commit      behind a shield: what would cancel it waits for its answer, for no longer than the
                grace. Without an answer the outcome is unknown, and the connection is thrown away
    rollback    likewise, to a savepoint too; without an answer the connection is thrown away, which
                rolls it back. It is never refused: what was to be undone would be committed later
    close       by a task of its own, which first has the server end what still runs; after the
                grace the socket is closed hard

The traps. SQLAlchemy closes a session in a task of its own, which no cancellation reaches, so a
frozen server has to be met by our own clock. And anyio cancels what is under a middleware of
Starlette again at every await, so what is waited for must be behind a shield of its kind.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from holdfast.adapters.sqlalchemy.errors import Statement, ours_behind, ours_for
from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import OutcomeUnknown, ScopeEnded
from holdfast.domain.instant import Duration
from holdfast.runtime.ambient import timeout
from holdfast.runtime.scope import AMBIENT, ambient, running_task
from holdfast.runtime.shield import Shield, let_come
from holdfast.runtime.tasks import aside

__all__ = [
    "close_within",
    "commit_by_driver",
    "commit_within",
    "in_thread_within",
    "rollback_within",
]

_log: Final = logging.getLogger("holdfast.adapters.sqlalchemy")
_LEAST: Final[Duration] = 0.02
"""Seconds for the graceful end of a connection, however late it is."""
_ACTIVE: Final = 1
"""Of libpq's transaction status: a command is under way."""


def commit_within(grace: Duration, commit: Callable[[Any], Any], name: str, held: Any) -> None:
    """Commit.

    Args:
        grace: seconds that it may take beyond the limit, or a cancellation.
        commit: what SQLAlchemy would do.
        name: of the driver.
        held: the connection, as the pool hands it out.

    Raises:
        OutcomeUnknown: the answer did not come in time, or the task was cancelled by its own
            `cancel()`. It is never tried again.
    """
    task = running_task()
    if task is None or not in_greenlet():
        commit(held)
        return
    bounds = Statement("COMMIT")
    shield = Shield("commit", grace)
    shield.enter(task)
    try:
        commit(held)
    except asyncio.CancelledError as exc:
        with suppress(ScopeEnded):
            shield.leave(exc)
        _abandon(name, held)
        raise _unknown(bounds) from exc
    except BaseException as exc:
        shield.leave(exc)
        raise
    with suppress(ScopeEnded):  # the answer and the end of the grace came together: it is done
        shield.leave(None)


def commit_by_driver(commit: Callable[[Any], Any], name: str, held: Any) -> None:
    """Commit, where the driver bounds it by itself.

    Raises:
        OutcomeUnknown: see `commit_within`.
    """
    bounds = Statement("COMMIT")
    try:
        commit(held)
    except asyncio.CancelledError as exc:
        _abandon(name, held)
        raise _unknown(bounds) from exc
    except Exception as exc:
        if isinstance(ours_behind(exc), OutcomeUnknown):
            _let_come()
        raise


def _abandon(name: str, held: Any) -> None:
    _cut(name, held)
    _let_come()


def _cut(name: str, held: Any) -> None:
    """The server does not answer: the socket is closed without another word."""
    driver = held.driver_connection
    if name == "asyncpg":
        driver.terminate()
    elif name == "psycopg":
        await_only(driver.close())


def _let_come() -> None:
    if in_greenlet():
        await_only(let_come())


def _unknown(bounds: Statement) -> ScopeEnded:
    here = ambient()
    reached = None if here is None else here.reached()
    kind = CauseKind.CALLER
    if reached is not None:
        kind = reached.kind
    elif bounds.left <= 0:
        kind = CauseKind.DEADLINE
    detail = "the commit was sent, its answer did not come in time"
    return ours_for(bounds.cause(detail, kind=kind), None)


def rollback_within(grace: Duration, rollback: Callable[[Any], Any], name: str, held: Any) -> None:
    """Roll back.

    Args:
        grace: seconds that it may take beyond the limit, or a cancellation.
        rollback: what SQLAlchemy would do.
        name: of the driver.
        held: the connection, as the pool hands it out.

    Raises:
        DeadlineExceeded: the answer did not come in time, and the connection is closed.
    """
    task = running_task()
    if task is None or not in_greenlet():
        rollback(held)
        return
    shield = Shield("rollback", grace)
    shield.enter(task)
    try:
        rollback(held)
    except BaseException as exc:
        try:
            shield.leave(exc)
        except ScopeEnded:
            _cut(name, held)
            raise
        raise
    shield.leave(None)


def in_thread_within(grace: Duration, rollback: Callable[[], Any]) -> None:
    """Roll back in a thread by a driver that keeps deadlines, as if the one here were `grace` away.

    Args:
        grace: seconds.
        rollback: what SQLAlchemy would do.
    """

    def work() -> None:
        AMBIENT.set(None)
        scope = timeout(grace, name="rollback").enter_plain()
        try:
            rollback()
        except BaseException as exc:
            scope.__exit__(type(exc), exc, exc.__traceback__)
            raise
        scope.__exit__(None, None, None)

    contextvars.copy_context().run(work)


def close_within(grace: Duration, close: Callable[[Any], Any], name: str, connection: Any) -> None:
    """Close a connection of SQLAlchemy's.

    Args:
        grace: seconds for a graceful end.
        close: what SQLAlchemy would do.
        name: of the driver.
        connection: as SQLAlchemy's dialect has it.
    """
    end = _ENDS.get(name)
    if end is None or not in_greenlet():
        close(connection)
        return
    await_only(_waited(end, connection, _left_of(grace)))


def _left_of(grace: Duration) -> Duration:
    """What is left of a grace, which begins once: a pool may have many connections to close."""
    here = ambient()
    if here is None:
        return grace
    now, reached = here.driver.now(), here.reached()
    begun = here.limit if reached is None else min(here.limit, reached.at)
    return grace if begun >= now else min(grace, max(_LEAST, begun + grace - now))


async def _waited(end: Callable[[Any, Duration], Any], connection: Any, grace: Duration) -> None:
    # A task of its own: whoever cancels us, again and again perhaps, shall not cut it.
    task = aside(end(connection, grace), name="close a connection")
    async with Shield("close", 2 * grace):
        await asyncio.wait([task])


async def _end_asyncpg(connection: Any, grace: Duration) -> None:
    # Waits for a cancel request that is under way, and is hard when it fails.
    try:
        await connection._connection.close(timeout=grace)
    except Exception as exc:
        _log.debug("a connection was closed hard: %r", exc)


async def _end_psycopg(connection: Any, grace: Duration) -> None:
    driver = connection._connection
    try:
        if driver.pgconn.transaction_status == _ACTIVE:
            await driver.cancel_safe(timeout=grace)
    except Exception as exc:
        _log.debug("what a connection was at could not be ended at the server: %r", exc)
    finally:
        await driver.close()


async def _end_aiosqlite(connection: Any, grace: Duration) -> None:
    driver = connection._connection
    try:
        await driver.interrupt()
        await driver.close()
    except ValueError:
        return  # it was closed before


_ENDS: Final[dict[str, Callable[[Any, Duration], Any]]] = {
    "aiosqlite": _end_aiosqlite,
    "asyncpg": _end_asyncpg,
    "psycopg": _end_psycopg,
}
