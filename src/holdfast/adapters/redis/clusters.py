"""Clusters: the nodes that are there, and those that turn up later.

Covered is every way to a socket: commands, pipelines, subscriptions, the table of slots. Not what a
cluster client does above that: its transactions end at the deadline as anything else, but not with
`OutcomeUnknown`. On a loop a connection that is owed an answer is closed, not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from redis.asyncio.connection import Connection
from redis.cluster import ClusterPipeline, RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from holdfast.adapters.redis.errors import Command, named
from holdfast.adapters.redis.pools import bounded_class
from holdfast.adapters.redis.settings import Settings
from holdfast.adapters.redis.variants import kind_of, opaque, plain, variant
from holdfast.domain.errors import HoldfastError, InsufficientBudget

__all__ = ["change_nodes", "pools_of_cluster"]

_MAKE: Final = "create_redis_node"
_CLASS: Final = "connection_class"

Change = Callable[[Any, Settings | None], None]


_Cluster = opaque(RedisCluster)
_Pipeline = opaque(ClusterPipeline)


class _InThread(_Cluster):  # type: ignore[misc,valid-type]
    """To be mixed into a `redis.RedisCluster`.

    That one asks all nodes for the table of slots when one does not answer, and says in the end
    that the cluster cannot be reached. When the time is over, that is all there is to say.
    """

    holdfast: Settings

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        command = Command(named(args[0]))
        try:
            return inner.execute_command(*args, **kwargs)
        except (RedisError, RedisClusterException) as exc:
            raise _explained(exc, command)  # noqa: B904 - that has its cause

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        made = inner.pipeline(*args, **kwargs)
        made.__class__ = variant(opaque(_InThreadPipeline), kind_of(made), self.holdfast)
        return made


class _InThreadPipeline(_Pipeline):  # type: ignore[misc,valid-type]
    """To be mixed into a `redis.cluster.ClusterPipeline`."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        command = Command("pipeline")
        try:
            return inner.execute(*args, **kwargs)
        except (RedisError, RedisClusterException) as exc:
            raise _explained(exc, command)  # noqa: B904 - that has its cause


def _explained(exc: Exception, command: Command) -> Exception:
    """Our own error when the time is over, else what redis-py has raised."""
    inside = exc.__cause__ or exc.__context__
    error: Exception
    if isinstance(exc, HoldfastError):
        return exc
    if command.spent:
        error = command.over(str(exc))
    elif isinstance(inside, InsufficientBudget):
        error = command.insufficient(command.cause(inside.cause.detail))
    else:
        return exc
    error.__cause__ = exc
    return error


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
    kind = kind_of(cluster)
    cluster.__class__ = (
        plain(kind) if settings is None else variant(opaque(_InThread), plain(kind), settings)
    )
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
