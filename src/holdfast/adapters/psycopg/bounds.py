"""What both kinds of connection share: what the server is told of the time that a statement has.

The deadline becomes `statement_timeout`, always local to a transaction, so that it is gone with it
and the next user of the server's process, behind a pooler too, never sees it:

- `BEGIN; SET LOCAL statement_timeout = N` is one message, where psycopg sends a `BEGIN` anyway;
- later statements of the transaction bring a new one along only when what the server has is looser
  than what is left by more than `SLACK_MS`, or tighter;
- statements of a connection in autocommit mode bring theirs along (see `flight`).

The server's own limit, of the role or the database, is asked for once and never loosened.

Traps. The seams are private to psycopg (`_start_query`, `_exec_command`, `_get_tx_start_command`);
tests pin them. `ROLLBACK TO` takes back what was set after the savepoint. A `SET` by the user is
noticed by its text: what it sets for the session becomes the own limit, and what it sets for the
transaction stays as it is until the end of that.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from psycopg import errors, generators, pq
from psycopg._connection_base import BaseConnection
from psycopg._pipeline_base import BasePipeline
from psycopg.rows import Row

from holdfast.adapters.psycopg.errors import Statement
from holdfast.domain.errors import ScopeEnded
from holdfast.domain.instant import NEVER, Duration

if TYPE_CHECKING:
    from psycopg.abc import PQGen, QueryNoTemplate
    from psycopg.pq.abc import PGconn, PGresult

__all__ = [
    "COMMIT_GRACE",
    "GRACE",
    "SLACK_MS",
    "UNHEARD_MS",
    "Bounds",
    "WaitTimeout",
    "encoding_of",
    "milliseconds",
    "with_patience",
]

GRACE: Final[Duration] = 0.5
"""Seconds that a statement gets to end after a cancellation, and a rollback to be answered; then
the connection is closed."""

COMMIT_GRACE: Final[Duration] = 1.0
"""Seconds beyond the deadline, or after a cancellation, that a commit gets to be answered."""

SLACK_MS: Final = 1000
"""How much looser than what is left the server's limit may be inside a transaction, in
milliseconds. The client ends the statement on time whatever the server has; this one is for a
client that has died."""

UNHEARD_MS: Final = 10_000
"""Milliseconds that the kernel goes on sending without hearing anything from the server's host,
where the user has not said it (`tcp_user_timeout`). It holds for the connection as long as it
lives, for all its users, so it does not depend on what one of them has left."""

_EARLY: Final[Duration] = 0.025
"""Seconds before the limit from which on the server's own time-out is taken for the deadline."""

_TIGHT_MS: Final = 20
"""How much tighter than what is left the server's limit may be inside a transaction, at most; less
than `_EARLY`. One scope after another has the same budget, and a hair more than the one before."""

_MOST_MS: Final = 2**31 - 1
_OWN: Final = -1
_UNSURE: Final = -2

_IDLE: Final = pq.TransactionStatus.IDLE
_INTRANS: Final = pq.TransactionStatus.INTRANS
_ACTIVE: Final = pq.TransactionStatus.ACTIVE
_OK: Final = pq.ConnStatus.OK
_BAD: Final = pq.ConnStatus.BAD
_FATAL: Final = pq.ExecStatus.FATAL_ERROR

WaitTimeout: Final = errors._WaitTimeout  # pyright: ignore[reportPrivateUsage]
"""What psycopg's wait functions raise when their time-out is over."""

_EXIT_CODE: Final = BasePipeline._exit_gen.__code__  # pyright: ignore[reportPrivateUsage]
_UNITS: Final = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(shown: str) -> int:
    """What `SHOW statement_timeout` says: `0`, `250ms`, `5s`, `2min`."""
    number = shown.rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(float(number) * _UNITS.get(shown[len(number) :], 1))


class Bounds(BaseConnection[Row]):
    """See the module. Between a class of psycopg's connections and ours."""

    bounds_statements: ClassVar[bool] = True
    grace: ClassVar[Duration] = GRACE
    """Seconds; see `GRACE`. A class of yours may have others."""
    commit_grace: ClassVar[Duration] = COMMIT_GRACE
    """Seconds; see `COMMIT_GRACE`."""
    refuse_below: ClassVar[Duration] = 0.0
    """Seconds; with less left no statement, transaction or dial is begun. Commits and rollbacks
    are."""
    tells_autocommit: ClassVar[bool] = True
    """Whether statements outside of transactions bring the server's limit along. A class of yours
    may say no: then such a statement costs nothing more, and runs on where its client dies."""

    _bound: Statement
    """Of the wait that is under way, or was last."""
    _own: int | None = None
    """The limit of the session itself, in milliseconds; 0 for none, None when it is not known."""
    _held: int = _OWN
    """What this transaction has in force."""
    _theirs: bool = False
    """The user has set a limit for this transaction."""
    _winding_up: bool = False
    """A statement was cut, and psycopg has still to fetch what the server had sent of it."""
    _hurried: bool = False
    """It goes back to its pool."""
    _unsure: bool = False
    """A commit is on its way in a pipeline of the user, or as text."""
    _level: int = 0
    """Of its pipeline, when the wait under way began."""
    _blocks: int = 0
    """How many blocks of pipelines are open."""

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self._label = f"SQL on {pgconn.db.decode(errors='replace')}"

    # -- what the server is told -----------------------------------------------------------------

    def _wish(self) -> int | None:
        """Milliseconds that the server should grant; None when its own limit does."""
        bound = self._bound
        if bound.limit == NEVER:
            return None
        # Rounded down, never up; and 0 would mean no limit.
        wish = min(int((bound.limit - bound.begun) * 1000) or 1, _MOST_MS)
        return None if self._own and self._own <= wish else wish

    def limit_due(self) -> int | None:
        """Milliseconds to be set before the next statement; None when all is well."""
        held = self._held
        if (held == _OWN and self._bound.limit == NEVER) or self._theirs:
            return None
        wish = self._wish()
        if self.pgconn.transaction_status == _IDLE:
            return wish if self.tells_autocommit else None
        if held == _OWN:
            return wish
        if wish is None:
            return self._own or 0
        least = wish - min(_TIGHT_MS, wish >> 6)
        return None if least <= held <= wish + SLACK_MS else wish

    def limit_sent(self, limit: int) -> None:
        """The server has been told; for the rest of this transaction."""
        self._held = limit

    def limit_touched(self, text: bytes) -> None:
        """The user has sent what sets something: `SET`, `RESET`, `DISCARD`, `set_config`."""
        said = text.lower()
        if b"statement_timeout" in said or b" all" in said:
            # In a transaction it may be for that alone, and a rollback takes it back: ask then.
            self._own = None
            self._theirs = self.pgconn.transaction_status != _IDLE

    def block_ended(self, text: bytes) -> None:
        """The user has sent the end of a transaction, or of a part of it, as text."""
        self._held = _UNSURE
        if b"chain" in text.lower():
            self._theirs = False

    def commit_sent(self) -> None:
        """The user sends a commit as text."""
        if self._pipeline is not None or self.pgconn.transaction_status == _INTRANS:
            self._unsure = True

    def _learn(self) -> PQGen[None]:
        """Ask for the limit that the session has by itself; once, unless the user changes it."""
        if self._own is None and self._bound.limit != NEVER and self._pipeline is None:
            shown = yield from super()._exec_command(b"SHOW statement_timeout")
            value = None if shown is None else shown.get_value(0, 0)
            self._own = 0 if value is None else milliseconds(value.decode())

    def suit(self) -> PQGen[None]:
        """Set the limit in a message of its own, where it is due and nothing can bring it along."""
        if self.pgconn.transaction_status == _INTRANS:
            due = self.limit_due()
            if due is not None:
                yield from super()._exec_command(b"SET LOCAL statement_timeout = %d" % due)
                self._held = due

    # -- the seams of psycopg --------------------------------------------------------------------

    def _start_query(self) -> PQGen[None]:
        self._winding_up = False
        bound = self._bound
        if bound.limit - bound.begun <= self.refuse_below:
            bound.admit(self.refuse_below)
        if self._pipeline is None:
            self._unsure = False
        if self.pgconn.transaction_status == _IDLE:
            self._held, self._theirs = _OWN, False
            if self._own is None:
                yield from self._learn()
            if self._pipeline is not None:
                yield from super()._start_query()
            elif not self._autocommit:
                # The same as what psycopg does there, with two generators less on the way.
                yield from self._begin(self._get_tx_start_command())

    def _get_tx_start_command(self) -> bytes:
        begin = super()._get_tx_start_command()
        self._theirs = False
        wish = self._wish()
        if wish is None:
            self._held = _OWN
            return begin
        self._held = wish
        return b"%b; SET LOCAL statement_timeout = %d" % (begin, wish)

    def _exec_command(
        self, command: QueryNoTemplate, result_format: pq.Format = pq.Format.TEXT
    ) -> PQGen[PGresult | None]:
        if not isinstance(command, bytes):
            yield from self.suit()
        elif command.startswith(b"BEGIN") and b";" in command:
            return (yield from self._begin(command))
        elif command.startswith(b"ROLLBACK TO"):
            self._held = _UNSURE
        return (yield from super()._exec_command(command, result_format))

    def _begin(self, command: bytes) -> PQGen[PGresult | None]:
        if self._pipeline is not None:
            for part in command.split(b"; "):
                yield from super()._exec_command(part)
            return None
        self._check_connection_ok()
        self.pgconn.send_query(command)
        results = yield from generators.execute(self.pgconn)
        for result in results:
            if result.status == _FATAL:
                raise errors.error_from_result(result, encoding=encoding_of(self.pgconn))
        begun: PGresult = results[0]
        return begun

    def ready_to_begin(self) -> PQGen[None]:
        """What is to be known before a transaction begins; for the transactions of ours."""
        if self.idle():
            yield from self._learn()

    @contextmanager
    def returning(self) -> Generator[None]:
        """While it goes back to its pool: a rollback then is bounded, whatever is left to whom."""
        self._hurried = True
        try:
            yield
        finally:
            self._hurried = False

    # -- how a wait ends -------------------------------------------------------------------------

    def abandon(self, gen: PQGen[Any] | None = None) -> None:
        """Close the connection hard: nobody knows what the server is at."""
        self.pgconn.finish()
        if gen is not None:
            _drop(gen)

    def leave(self, gen: PQGen[Any], error: BaseException) -> None:
        """A wait ends with `error`: what it waited for is left, and the pipeline that it entered,
        for whoever waited is told that it was not."""
        _drop(gen)
        pipeline = self._pipeline
        if pipeline is None or self.lost():
            return
        if pipeline.level > self._level:
            pipeline._exit(error)  # pyright: ignore[reportPrivateUsage]
        elif getattr(gen, "gi_code", None) is _EXIT_CODE and pipeline.level == 1:
            # psycopg does it next, and would raise in the place of a cancellation.
            try:
                self.pgconn.exit_pipeline_mode()
            except errors.OperationalError:
                self.abandon()

    def at_work(self) -> bool:
        """Whether a statement is under way that a cancel request would end."""
        return bool(self.pgconn.transaction_status == _ACTIVE)

    def idle(self) -> bool:
        """Whether no transaction is open, and no statement under way."""
        return bool(self.pgconn.transaction_status == _IDLE)

    def lost(self) -> bool:
        """Whether it is closed, for whatever reason."""
        return bool(self.pgconn.status == _BAD)

    def usable(self) -> bool:
        """Whether it is connected."""
        return bool(self.pgconn.status == _OK)

    def explained(self, error: errors.QueryCanceled) -> Exception:
        """Our error, where the server's time-out was a little faster than our own clock."""
        bound = self._bound
        if bound.limit == NEVER or bound.left > _EARLY or isinstance(error, ScopeEnded):
            return error
        ours = bound.over("the server ended it by its statement_timeout")
        ours.__cause__ = error
        return ours

    def note_level(self) -> None:
        """A wait begins."""
        pipeline = self._pipeline
        self._level = 0 if pipeline is None else pipeline.level

    @contextmanager
    def block_of_pipeline(self) -> Generator[None]:
        """Around one: when the last is left, the connection is out of pipeline mode, or closed.

        What psycopg does for that can be cut, and then the next user has answers that never come.
        """
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            if not self._blocks and self.in_pipeline():
                self.abandon()

    def in_pipeline(self) -> bool:
        """Whether it is in pipeline mode, or is taken to be."""
        return self._pipeline is not None or self.pgconn.pipeline_status != pq.PipelineStatus.OFF

    def settled_with_pipeline(self) -> None:
        """Something was answered: perhaps the commit that is on its way in a pipeline."""
        if self._unsure and (self._pipeline is None or not self._pipeline.result_queue):
            self._unsure = False

    def unanswered(self, what: str) -> errors.OperationalError:
        """The error for a clean-up that took too long."""
        return errors.OperationalError(
            f"the {what} was not answered within {self.grace} s, so the connection is closed"
        )


def _drop(gen: PQGen[Any]) -> None:
    """Close what was waited for. That of a pipeline's end has more to say when it is closed, and
    nobody hears it any more."""
    with suppress(errors.Error, RuntimeError):
        gen.close()


def encoding_of(pgconn: PGconn) -> str:
    """In which the server's messages are."""
    return pgconn._encoding  # pyright: ignore[reportPrivateUsage]


def with_patience(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a connection, with a bound on how long the kernel sends without an answer."""
    params.setdefault("tcp_user_timeout", UNHEARD_MS)
    return params
