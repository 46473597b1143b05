"""redis-py: no command outlives what is left, and no answer reaches a caller who did not ask.

    from holdfast.adapters.redis import instrument

    client = instrument(redis.asyncio.Redis())     # or redis.Redis(), a RedisCluster, a pool

    async with holdfast.timeout(2.0):
        await client.blpop("jobs", 0)              # waits at the server for less than 2 s

    onloop, inthread   connections, of either kind; `counting` is what they share
    pools              who gets one, and what becomes of one that was cut
    pipelines          transactions, and clients that make them
    retrying           redis-py's own attempts, in one budget
    blocking           commands that wait at the server
    clusters           nodes, now and later
    variants           how classes of the library become ours

What belongs here: what crosses between redis-py and Holdfast. What does not: caches, locks, queues.
"""

from __future__ import annotations

from holdfast.adapters.redis.instrumenting import instrument, pool_of, uninstrument

__all__ = ["instrument", "pool_of", "uninstrument"]
