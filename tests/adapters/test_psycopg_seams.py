"""What psycopg does not promise and we stand on. A release that changes it is told apart here."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import errors, generators, waiting
from psycopg._connection_base import BaseConnection
from psycopg._cursor_base import BaseCursor
from psycopg._pipeline_base import BasePipeline
from psycopg._preparing import Prepare, PrepareManager
from psycopg.transaction import BaseTransaction
from psycopg_pool.pool_async import ReturnConnection, WaitingClient

import holdfast
from holdfast.adapters.psycopg import errors as ours
from holdfast.adapters.psycopg import pools
from holdfast.adapters.psycopg.bounds import Bounds
from holdfast.adapters.psycopg.flight import Bringing, bringing
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, OutcomeUnknown


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (BaseConnection._start_query, ["self"]),
        (BaseConnection._exec_command, ["self", "command", "result_format"]),
        (BaseConnection._get_tx_start_command, ["self"]),
        (BaseConnection._commit_gen, ["self"]),
        (BaseConnection._rollback_gen, ["self"]),
        (BaseConnection._check_connection_ok, ["self"]),
        (psycopg.AsyncConnection.wait, ["self", "gen", "interval", "timeout"]),
        (psycopg.Connection.wait, ["self", "gen", "interval", "timeout"]),
        (psycopg.AsyncConnection.cancel_safe, ["self", "timeout"]),
        (psycopg.Connection.cancel_safe, ["self", "timeout"]),
        (psycopg.AsyncConnection._try_cancel, ["self", "timeout"]),
        (psycopg.Connection._try_cancel, ["self", "timeout"]),
        (psycopg.Connection._connect_gen, ["conninfo"]),
        (psycopg.AsyncConnection._get_connection_params, ["conninfo", "kwargs"]),
        (psycopg.AsyncConnection.transaction, ["self", "savepoint_name", "force_rollback"]),
        (BaseCursor._maybe_prepare_gen, ["self", "pgq", "prepare", "binary"]),
        (BaseCursor._execute_send, ["self", "query", "force_extended", "binary"]),
        (BaseCursor._send_prepare, ["self", "name", "query"]),
        (BaseCursor._send_query_prepared, ["self", "name", "pgq", "binary"]),
        (BaseCursor._get_prepared, ["self", "pgq", "prepare"]),
        (BaseCursor._stream_send_gen, ["self", "query", "params", "binary", "size"]),
        (BaseCursor._start_copy_gen, ["self", "statement", "params"]),
        (BaseCursor._check_results, ["self", "results"]),
        (BaseCursor._set_results, ["self", "results"]),
        (BaseTransaction._enter_gen, ["self"]),
        (BaseTransaction._exit_gen, ["self", "exc_type", "exc_val", "exc_tb"]),
        (PrepareManager.get, ["self", "query", "prepare"]),
        (PrepareManager.maybe_add_to_cache, ["self", "query", "prep", "name"]),
        (PrepareManager.validate, ["self", "key", "prep", "name", "results"]),
        (waiting.wait_async, ["gen", "fileno", "interval", "timeout"]),
        (psycopg_pool.AsyncConnectionPool._getconn_unchecked, ["self", "timeout"]),
        (psycopg_pool.AsyncConnectionPool._get_ready_connection, ["self", "timeout"]),
        (psycopg_pool.AsyncConnectionPool._putconn, ["self", "conn", "from_getconn"]),
        (psycopg_pool.AsyncConnectionPool._add_to_pool, ["self", "conn"]),
        (psycopg_pool.AsyncConnectionPool._open, ["self"]),
        (psycopg_pool.AsyncConnectionPool._close_connection, ["self", "conn"]),
        (psycopg_pool.ConnectionPool._add_to_pool, ["self", "conn"]),
        (ReturnConnection.__init__, ["self", "pool", "conn", "from_getconn"]),
        (WaitingClient.wait, ["self", "timeout"]),
        (WaitingClient.set, ["self", "conn"]),
        (WaitingClient.fail, ["self", "error"]),
    ],
)
def test_it_is_called_like_this(function: Any, expected: list[str]) -> None:
    assert parameters(function) == expected


def test_the_generators_are_there() -> None:
    for name in ("execute", "fetch_many", "send"):
        assert callable(getattr(generators, name))
    assert [kind.name for kind in Prepare] == ["NO", "YES", "SHOULD"]
    assert issubclass(errors._WaitTimeout, errors.OperationalError)


def test_the_source_says_what_we_count_on() -> None:
    """Where psycopg sends, and where it waits; each line is one that a copy of ours stands on."""
    begun = inspect.getsource(BaseConnection._start_query)
    assert "yield from self._exec_command(self._get_tx_start_command())" in begun
    assert 'yield from self._exec_command(b"COMMIT")' in inspect.getsource(
        BaseConnection._commit_gen
    )
    assert 'yield b"COMMIT"' in inspect.getsource(BaseTransaction._get_commit_commands)
    assert "ROLLBACK TO" in inspect.getsource(BaseTransaction._get_rollback_commands)
    assert "await self._conn.wait(" in inspect.getsource(psycopg.AsyncCursor.execute)
    assert "self._conn.wait(" in inspect.getsource(psycopg.Cursor.execute)
    queued = inspect.getsource(BasePipeline._process_results)
    assert "if queued is None:\n            (result,) = results" in queued
    waits = inspect.getsource(psycopg_pool.AsyncConnectionPool._getconn_unchecked)
    assert "pos: WaitingClient[ACT] = WaitingClient()" in waits
    assert "self._waiting.append(pos)" in waits
    assert "ReturnConnection(self, pos.conn, from_getconn=True)" in waits
    assert "if await self._waiting.popleft().set(conn):" in inspect.getsource(
        psycopg_pool.AsyncConnectionPool._add_to_pool
    )


def test_classes_of_cursors_are_extended_once() -> None:
    for kind in (psycopg.Cursor, psycopg.AsyncCursor, psycopg.ClientCursor, psycopg.RawCursor):
        made = bringing(kind)
        assert made is bringing(kind)
        assert made is bringing(made)
        assert issubclass(made, kind)
        assert issubclass(made, Bringing)
        assert made.__slots__ == ()

    def factory(*_: object) -> None: ...

    assert bringing(factory) is factory


def test_errors_are_psycopg_s_too_and_travel() -> None:
    statement = ours.Statement("SQL on shop")
    late = statement.over("waited")
    refused = statement.insufficient(statement.cause("not begun"))
    unknown = ours.unknown(statement, "COMMIT was sent")
    dial = ours.Dial("connect").over("dialling")
    for error, kinds in (
        (late, (DeadlineExceeded, TimeoutError, errors.QueryCanceled, psycopg.Error)),
        (refused, (InsufficientBudget, errors.QueryCanceled)),
        (unknown, (OutcomeUnknown, psycopg.OperationalError)),
        (dial, (DeadlineExceeded, errors.ConnectionTimeout)),
    ):
        for twin in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(twin) is type(error)
            assert isinstance(twin, kinds)
            assert str(twin) == str(error)
            assert twin.diag.message_primary is None
            assert twin.pgconn is None
            assert twin.pgresult is None
    assert "SQL on shop" in str(late)
    assert "unknown" in str(unknown)
    assert not isinstance(unknown, TimeoutError)
    assert not holdfast.is_retryable(unknown)
    waited = pools._Turn("pool").over("all in use")
    assert isinstance(waited, psycopg_pool.PoolTimeout)
    assert isinstance(pickle.loads(pickle.dumps(waited)), psycopg_pool.PoolTimeout)


def test_the_class_says_that_it_bounds_statements() -> None:
    assert Bounds.bounds_statements is True
