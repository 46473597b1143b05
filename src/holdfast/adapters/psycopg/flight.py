"""A limit and the statement that it is for, in one flight.

Cursors of ours bring the server's limit along with a statement, where it is due:

- a statement without parameters goes by the simple protocol, as with psycopg: one message with the
  `SET LOCAL` in front, which is one implicit transaction. In its errors the line is one too high;
  the text of the message is put right, `diag.statement_position` is not;
- one with parameters goes by libpq's pipeline mode, behind the command that sets the limit, up to
  one Sync: one implicit transaction too, and one round trip.

Only what can run inside a transaction may be sent like this, so in autocommit mode statements that
begin with another word (`VACUUM`, `CREATE`, `CALL`, `COPY`) go without a limit at the server. Ours
holds for them all the same.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from psycopg import errors, pq
from psycopg._cursor_base import BaseCursor
from psycopg._preparing import Prepare, PrepareManager
from psycopg.generators import execute, fetch_many, send

from holdfast.adapters.psycopg.bounds import Bounds
from holdfast.domain.wire.verbs import first_word

if TYPE_CHECKING:
    from psycopg._queries import PostgresQuery
    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ["Bringing", "bringing"]

_IDLE: Final = pq.TransactionStatus.IDLE
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_ABORTED: Final = pq.ExecStatus.PIPELINE_ABORTED
_BINARY: Final = pq.Format.BINARY
_OK: Final = pq.ConnStatus.OK

_WORK: Final = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "VALUES", "MERGE", "TABLE"}
)
_OTHER_KINDS: Final = {
    "SET": "setting",
    "RESET": "setting",
    "DISCARD": "setting",
    "ROLLBACK": "rollback",
    "ABORT": "rollback",
    "COMMIT": "commit",
    "END": "commit",
}
_CONFIG: Final = re.compile(rb"set_config", re.IGNORECASE)
_LINE: Final = re.compile(r"^LINE (\d+):", re.MULTILINE)
_BRINGING: Final = frozenset({"work", "config"})
_TOUCHING: Final = frozenset({"setting", "config"})
_ENDING: Final = frozenset({"commit", "rollback"})
_TEXT_OID: Final = 25
_LONG: Final = 4096
"""Bytes of a statement from which on it is not worth remembering what it begins with."""


class _Limit(NamedTuple):
    """The command that sets a limit in autocommit mode, as psycopg's cache of statements sees it.

    `SET LOCAL` would do too, but the server warns of it there.
    """

    query: bytes = b"SELECT pg_catalog.set_config('statement_timeout', $1, true)"
    types: tuple[int, ...] = (_TEXT_OID,)


_LIMIT: Final[Any] = _Limit()


class _Told:
    """Takes the answer to a limit in a pipeline, as a cursor does. What psycopg has for commands of
    its own takes one result: but behind a `stream()` libpq still gives rows one by one there."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding

    def _check_results(self, results: list[PGresult]) -> None:
        for result in results:
            if result.status == _FATAL:
                raise errors.error_from_result(result, encoding=self._encoding)
            if result.status == _ABORTED:
                raise errors.PipelineAborted("pipeline aborted")

    def _set_results(self, results: list[PGresult]) -> None:
        """Nobody asks for them."""


class Bringing(BaseCursor[Any, Any]):
    """See the module. In front of a class of psycopg's cursors."""

    __slots__ = ()

    def _maybe_prepare_gen(
        self, pgq: PostgresQuery, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn: Bounds[Any] = self._conn
        query = pgq.query
        kind = _kind(query) if len(query) < _LONG else _kind_of(query)
        due = conn.limit_due()
        if due is not None:
            if kind not in _BRINGING:
                yield from conn.suit()
            elif self._conn._pipeline is not None:
                self._queue_limit(due)
            else:
                yield from self._together(due, pgq, prepare, binary)
                if kind == "config":
                    conn.limit_touched(_text_of(pgq))
                return
        if kind == "commit":
            conn.commit_sent()
        yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
        if kind in _TOUCHING:
            conn.limit_touched(_text_of(pgq))
        elif kind in _ENDING:
            conn.block_ended(query)

    def _stream_send_gen(
        self,
        query: Query,
        params: Params | None = None,
        *,
        binary: bool | None = None,
        size: int,
    ) -> PQGen[None]:
        yield from self._conn.suit()
        yield from super()._stream_send_gen(query, params, binary=binary, size=size)

    def _start_copy_gen(self, statement: Query, params: Params | None = None) -> PQGen[None]:
        yield from self._conn.suit()
        yield from super()._start_copy_gen(statement, params)

    # -- in one flight ---------------------------------------------------------------------------

    def _together(
        self, due: int, pgq: PostgresQuery, prepare: bool | None, binary: bool | None
    ) -> PQGen[None]:
        conn, prepared = self._conn, self._conn._prepared
        inside = conn.pgconn.transaction_status != _IDLE
        prep, name = self._get_prepared(pgq, prepare)
        coded = self.format == _BINARY if binary is None else binary
        if prep is Prepare.NO and not pgq.params and not coded:
            results = yield from self._in_one_message(due, pgq)
        else:
            results = yield from self._in_one_pipeline(due, inside, pgq, prep, name, binary)
        if inside:
            conn.limit_sent(due)
        # Not before: what failed to be prepared must not be taken for prepared.
        key = prepared.maybe_add_to_cache(pgq, prep, name)
        if key is not None:
            prepared.validate(key, prep, name, results)
        self._check_results(results)
        self._set_results(results)

    def _in_one_message(self, due: int, pgq: PostgresQuery) -> PQGen[list[PGresult]]:
        self._query = pgq
        self._pgconn.send_query(b"SET LOCAL statement_timeout = %d;\n%b" % (due, pgq.query))
        results = yield from execute(self._pgconn)
        last = results[-1]
        if last.status == _FATAL:
            error = errors.error_from_result(last, encoding=self._encoding)
            error.args = tuple(_one_line_less(part) for part in error.args)
            raise error
        answers: list[PGresult] = results[1:]
        return answers

    def _in_one_pipeline(
        self,
        due: int,
        inside: bool,
        pgq: PostgresQuery,
        prep: Prepare,
        name: bytes,
        binary: bool | None,
    ) -> PQGen[list[PGresult]]:
        pgconn, prepared = self._pgconn, self._conn._prepared
        limited = None if inside else _prepared_limit(prepared)
        pgconn.enter_pipeline_mode()
        try:
            sent = 2
            if limited is None:
                pgconn.send_query_params(b"SET LOCAL statement_timeout = %d" % due, None)
            else:
                sent += _send_limit(pgconn, due, *limited)
            if prep is Prepare.NO:
                self._execute_send(pgq, force_extended=True, binary=binary)
            else:
                if prep is Prepare.SHOULD:
                    self._send_prepare(name, pgq)
                    sent += 1
                self._send_query_prepared(name, pgq, binary=binary)
            pgconn.pipeline_sync()
            yield from send(pgconn)
            answers: list[list[PGresult]] = []
            while len(answers) < sent:
                answers.append((yield from fetch_many(pgconn)))
            yield from fetch_many(pgconn)  # the Sync
        finally:
            _leave(pgconn)
        for first, *_ in answers[:-1]:
            if first.status == _FATAL:
                raise errors.error_from_result(first, encoding=self._encoding)
        if limited is not None and limited[0] is Prepare.SHOULD:
            prepared.maybe_add_to_cache(_LIMIT, *limited)
        return answers[-1]

    def _queue_limit(self, due: int) -> None:
        """In a pipeline of the user."""
        pipeline = self._conn._pipeline
        assert pipeline is not None
        pipeline.command_queue.append(
            partial(self._pgconn.send_query_params, _LIMIT.query, [b"%d" % due])
        )
        told: Any = _Told(self._encoding)
        pipeline.result_queue.append((told, None))
        self._conn.limit_sent(due)


def _kind_of(query: bytes) -> str | None:
    """`work` that may run in a transaction, `config` that may set something too, a `setting`,
    `commit`, `rollback`, or None for anything else."""
    word = first_word(query.decode("latin-1"))
    if word in _WORK:
        return "config" if _CONFIG.search(query) else "work"
    return _OTHER_KINDS.get(word)


def _text_of(pgq: PostgresQuery) -> bytes:
    """A statement with its parameters, for whoever looks for a name in it."""
    return b" ".join((pgq.query, *(bytes(part) for part in pgq.params or () if part is not None)))


_kind: Final = lru_cache(1024)(_kind_of)


def _prepared_limit(prepared: PrepareManager) -> tuple[Prepare, bytes]:
    name = prepared._names.get(_LIMIT)  # pyright: ignore[reportPrivateUsage]
    return prepared.get(_LIMIT, True) if name is None else (Prepare.YES, name)


def _send_limit(pgconn: PGconn, due: int, prep: Prepare, name: bytes) -> int:
    """Send the command that sets the limit; how many answers more than one it will have."""
    value = [b"%d" % due]
    if prep is Prepare.NO:
        pgconn.send_query_params(_LIMIT.query, value, param_types=_LIMIT.types)
        return 0
    if prep is Prepare.SHOULD:
        pgconn.send_prepare(name, _LIMIT.query, param_types=_LIMIT.types)
    pgconn.send_query_prepared(name, value)
    return int(prep is Prepare.SHOULD)


def _leave(pgconn: PGconn) -> None:
    if pgconn.status == _OK:
        pgconn.exit_pipeline_mode()


def _one_line_less(part: Any) -> Any:
    if not isinstance(part, str):
        return part
    return _LINE.sub(lambda found: f"LINE {int(found[1]) - 1}:", part)


@cache
def bringing(kind: Any) -> Any:
    """The class of cursors that `kind` is, with what this module adds."""
    base: Any = kind
    if not isinstance(kind, type) or not issubclass(kind, BaseCursor) or issubclass(kind, Bringing):
        return base
    body = {"__slots__": (), "__module__": base.__module__, "__doc__": base.__doc__}
    return type(base.__name__, (Bringing, base), body)
