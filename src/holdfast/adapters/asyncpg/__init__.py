"""asyncpg: statements that end with their deadline, at the server too.

    from holdfast.adapters.asyncpg import create_pool

    pool = await create_pool("postgresql://app@db/shop")

    async with holdfast.timeout(2.0):
        async with pool.acquire() as connection:                # a place in the pool, in time
            await connection.fetch("SELECT * FROM orders")      # ended at the server as well

    connection   the connection: a class of asyncpg's, so that it fits into any pool or toolkit
    cancelling   the request that ends a statement
    protocol     every operation of asyncpg's protocol, bounded
    bounding     what goes before an operation, how it ends, what becomes of its error
    telling      what the server is told of the time
    replies      the answers to what we sent, taken out of what asyncpg reads
    messages     what we send, as bytes
    bounds       which time the server has been told, and whether that still fits
    statements   what kind of statement a text is
    transaction  the block of a transaction whose connection has gone
    pool         the pool: waiting for a place, giving it back

How the server knows the time. Its `statement_timeout` is set by a message that goes right before
the statement, in the same direction, and whose answer is taken out before asyncpg sees it: no round
trip. On a connection that leads to the server itself it is set for the session, and again only when
what it is does not fit any more. Behind a pooler, which may give the next transaction to another
server connection, it is set for the transaction alone, so nothing is left behind for others.

What belongs here: what crosses between asyncpg and Holdfast. What does not: retries, queries.
"""

from __future__ import annotations

from holdfast.adapters.asyncpg.connection import HeldConnection, connect
from holdfast.adapters.asyncpg.pool import HeldPool, create_pool

__all__ = ["HeldConnection", "HeldPool", "connect", "create_pool"]
