"""The block of a transaction, where its connection may have gone, or its beginning been cut.

How it commits and rolls back is seen to below, where the statements go out, so that it holds for
who writes them by hand as well.
"""

from __future__ import annotations

from typing import Any

from asyncpg.transaction import Transaction, TransactionState

__all__ = ["HeldTransaction"]


class HeldTransaction(Transaction):
    """A transaction of asyncpg. An error in its block is not replaced by one of the rollback."""

    _connection: Any
    _managed: bool
    _state: Any

    async def start(self) -> None:
        """See asyncpg. Where it fails no transaction is left, at the server or here."""
        try:
            await super().start()
        except BaseException:
            connection = self._connection
            if self._state is TransactionState.FAILED and connection._top_xact is self:
                connection._top_xact = None
            raise

    async def __aexit__(self, extype: object, ex: object, tb: object) -> Any:
        if extype is not None and self._connection.is_closed():
            # The transaction has ended with it. asyncpg would say that it cannot roll back.
            self._managed = False
            return None
        return await super().__aexit__(extype, ex, tb)
