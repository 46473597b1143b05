"""What the server is told of the time that a statement has, and what it answers to that.

What belongs here: knowing what the server knows. Traps: what is set in a transaction goes with it,
or with the savepoint; a cancel request may hit what we sent instead of the statement; and users set
the time-out by hand. Then what is theirs is put back before, and asked for afterwards, so that ours
is never taken for theirs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import nan
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakMethod

import asyncpg
from asyncpg.protocol.protocol import Protocol

from holdfast.adapters.asyncpg.bounds import fits, milliseconds_of, range_of, rounded, wish_of
from holdfast.adapters.asyncpg.errors import Statement
from holdfast.adapters.asyncpg.messages import ASK, local_prefix, set_for_session, set_local
from holdfast.adapters.asyncpg.replies import Answer, Replies
from holdfast.adapters.asyncpg.statements import Kind
from holdfast.domain.instant import Duration

__all__ = ["Telling"]

if TYPE_CHECKING:  # at run time the class has no parameters
    _Base = Protocol[Any]
else:
    _Base = Protocol

_data_received: Final[Any] = Protocol.data_received
_MOMENT: Final[Duration] = 1e-6
_RESET_NEEDS: Final = 1000
"""Milliseconds that setting a session back must be allowed to take."""


class Telling(_Base):
    """asyncpg's protocol, with the same layout, so that one of asyncpg's can become one.

    Attributes:
        wire: the transport.
        replies: what answers to us are to come.
        awaited: those answers, looked at for all that comes.
        first: milliseconds that a session has by itself, 0 for none.
        base: milliseconds that it has without us: that, or what the user has set by hand; none
            while that is not known.
        unsure: the user may have set something just now: the server must be asked.
        alone: the session may be set, where there is no pooler.
        direct: there is no pooler in between, so the session is ours.
        known: milliseconds that the server has been told, 0 for no limit; none where it is unsure.
        in_block: that holds in a transaction, with which it ends.
        outer: what held when it began, and will again.
        told: values of ours in this transaction.
        outer_base: likewise, where the user has set another in it.
        least: seconds; with less left it must be told again.
        most: seconds; with more left too.
        mute: the server is not to be told anything.
        ahead: milliseconds that a prefix has set for what comes before the next Sync; 0 without.
        grace: seconds that a statement which was cancelled, and a rollback, may take.
        commit_grace: seconds that a commit may take after its scope has ended.
        refuse_below: seconds; a statement with less left is not begun.
        abandon: closes the connection hard.
    """

    wire: Any
    replies: Replies
    awaited: deque[Answer]
    first: int = 0
    base: int | None = None
    unsure: bool = False
    alone: bool = True
    direct: bool = False
    known: int | None = None
    in_block: bool = False
    outer: int | None = None
    outer_base: int | None = None
    told: set[int]
    least: Duration = nan
    most: Duration = nan
    mute: bool = False
    ahead: int = 0
    abandon: WeakMethod[Callable[[], None]]
    grace: Duration = 0.5
    commit_grace: Duration = 1.0
    refuse_below: Duration = 0.0
    _asked: asyncio.Future[Answer] | None = None
    _question: Answer | None = None

    # -- what comes ------------------------------------------------------------------------------

    def data_received(self, data: Any) -> None:
        if self.awaited:
            data, done = self.replies.strip(bytes(data))
            for answer in done:
                self._answered(answer)
            if not data:
                return
        _data_received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        asked = self._asked
        if asked is not None and not asked.done():
            asked.set_exception(
                asyncpg.ConnectionDoesNotExistError("connection was closed by the server")
            )
            asked.exception()  # whoever asked may have gone
        super().connection_lost(exc)

    def _answered(self, answer: Answer) -> None:
        if answer is self._question:
            if self._asked is not None and not self._asked.done():
                self._asked.set_result(answer)
        elif answer.failed:
            self.knows(None)  # a cancel request may have hit it, or the transaction had failed

    # -- what goes before ------------------------------------------------------------------------

    async def learn(self) -> None:
        """Find out which time-out it has, and the first time who is at the other end: a round trip.

        What is asked while a transaction has failed is not answered; then it stays unsure.
        """
        asked = self._asked
        if asked is None:
            asked = self._asked = asyncio.get_running_loop().create_future()
            self._question = self.replies.queried()
            self.wire.write(ASK)
        answer = await asyncio.shield(asked)
        if asked is not self._asked:
            return
        self._asked = self._question = None
        try:
            pid, setting = answer.text
            value = milliseconds_of(setting)
        except ValueError:
            if self.base is None:
                self.base, self.mute = 0, True  # it does not know the question: it is told nothing
            return
        if self.base is None:
            # A pooler has keys of its own for cancel requests, as its clients have no backend.
            self.direct = self.alone and pid == str(self.backend_pid)
            self.first = self.base = value
        self._found(value)

    def _found(self, value: int) -> None:
        """The server has `value`: what it was told, or what the user has set since."""
        self.unsure = False
        in_block = self.is_in_transaction()
        if in_block:
            self.enters()
            if self.outer_base is None:
                self.outer_base = self.base
            if value == self.outer or value in self.told:
                self.base = self.base if value == self.known else self.outer_base
            else:
                self.base = value
        elif self.known is not None and self.known != value:
            self.base = value
        self.knows(value, in_block=in_block)

    def enters(self) -> None:
        """What is known from now on holds in a transaction."""
        if not self.in_block:
            self.outer, self.in_block = self.known, True
            self.told = set()

    def leaves(self) -> None:
        """What was known in a transaction has gone with it, if it is over."""
        if not self.in_block or self.is_in_transaction():
            return
        if self.outer_base is not None:  # it may have been for the transaction alone
            self.base, self.outer_base, self.unsure = self.outer_base, None, True
        self.knows(self.outer)

    def touched(self) -> None:
        """The user has set the time-out, or tried to."""
        if self.mute:
            return
        if self.is_in_transaction():
            self.enters()
        self.unsure = True
        self.knows(self.known, in_block=self.in_block)

    def set_back(self, kept: int) -> None:
        """All of the session was set back, and its time-out then to `kept` by us, 0 for not."""
        if self.is_in_transaction():
            self.touched()
            return
        self.base, self.outer_base, self.unsure = self.first, None, False
        self.knows(kept or self.base)

    def tell(self, statement: Statement, kind: Kind, *, follows: bool) -> None:
        """Tell the server how long what comes now may take, where it does not know.

        Args:
            statement: its bounds.
            kind: what it is.
            follows: it is of the extended protocol, so what sets the time can stand before it
                without a Sync.
        """
        self.leaves()
        base = self.base
        if base is None or self.mute or self.unsure or kind.rolls_back:
            return
        in_block = self.is_in_transaction()
        if not (in_block or self.direct) and self.known != base:
            self.knows(base)
        wish = wish_of(statement.left, base)
        if kind.sets:
            if not (self.direct or in_block):
                return
            wish = base  # so that what is found afterwards is not ours
        if kind.resets and wish == base:
            wish = base or _RESET_NEEDS
        known, ahead = self.known, self.ahead
        if ahead and fits(ahead, wish):
            return
        if not ahead and known is not None and fits(known, wish, brief=kind.brief):
            return
        if not self.is_connected():
            return
        value = rounded(wish, base)
        if self.direct or in_block:
            self.replies.queried()
            if in_block:
                self.enters()
                self.told.add(value)
            # In a transaction for that alone: then what the session had is there again after it.
            self.wire.write(set_local(value) if in_block else set_for_session(value))
            self.knows(value, in_block=in_block)
            return
        if not kind.data:
            return
        self.ahead = value
        if not follows:
            return  # it becomes a part of the text
        self.replies.prefixed()
        self.wire.write(local_prefix(value))

    @property
    def keeps(self) -> bool:
        """Whether the session has a time-out of ours that the next user may need as well."""
        self.leaves()
        return (
            self.direct
            and not self.unsure
            and not self.in_block
            and self.known not in (None, self.base)
        )

    def knows(self, known: int | None, *, in_block: bool = False) -> None:
        """The server has been told `known`; none when that is not sure any more."""
        self.known, self.in_block = known, in_block
        if known is None or in_block or self.unsure or self.base is None:
            self.least = self.most = nan  # nothing is within
        else:
            least, self.most = range_of(known, self.base)
            self.least = max(least, self.refuse_below, _MOMENT)
