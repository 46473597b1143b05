"""Clusters: the nodes that are there, and those that turn up later.

Covered is every way to a socket: commands, pipelines, subscriptions, the table of slots. Not what a
cluster client does above that: its transactions end at the deadline as anything else, but not with
`OutcomeUnknown`. On a loop a connection that is owed an answer is closed, not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from redis.asyncio.connection import Connection

from holdfast.adapters.redis.pools import bounded_class
from holdfast.adapters.redis.settings import Settings
from holdfast.adapters.redis.variants import plain

__all__ = ["change_nodes", "pools_of_cluster"]

_MAKE: Final = "create_redis_node"
_CLASS: Final = "connection_class"

Change = Callable[[Any, Settings | None], None]


def change_nodes(
    cluster: Any, settings: Settings | None, change_pool: Change, change: Change
) -> None:
    """Instrument the nodes of a cluster, or undo it when there are no settings.

    Args:
        cluster: a `RedisCluster` of either kind.
        settings: what the carrier was told.
        change_pool: instruments a pool, or undoes it.
        change: instruments a connection, or undoes it.
    """
    nodes: Any = cluster.nodes_manager
    if not hasattr(nodes, _MAKE):
        kwargs = nodes.connection_kwargs
        kwargs[_CLASS] = _changed(kwargs.get(_CLASS, Connection), settings)
        for node in _nodes(cluster):
            node.connection_class = _changed(node.connection_class, settings)
            for connection in node._connections:
                change(connection, settings)
        return
    if _MAKE in vars(nodes):
        del nodes.create_redis_node
    if settings is not None:
        inner = nodes.create_redis_node

        def create_redis_node(*args: Any, **kwargs: Any) -> Any:
            made = inner(*args, **kwargs)
            change_pool(made.connection_pool, settings)
            return made

        nodes.create_redis_node = create_redis_node
    for pool in pools_of_cluster(cluster):
        change_pool(pool, settings)


def pools_of_cluster(cluster: Any) -> list[Any]:
    """The pools of the nodes; none of a cluster for a loop, whose nodes are pools themselves."""
    clients = [getattr(node, "redis_connection", None) for node in _nodes(cluster)]
    return [client.connection_pool for client in clients if client is not None]


def _nodes(cluster: Any) -> Iterator[Any]:
    nodes: Any = cluster.nodes_manager
    found = {id(node): node for node in nodes.nodes_cache.values()}
    found.update((id(node), node) for node in nodes.startup_nodes.values())
    yield from found.values()


def _changed(kind: Any, settings: Settings | None) -> Any:
    return plain(kind) if settings is None else bounded_class(kind, settings)
