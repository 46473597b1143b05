"""What of redis-py we hold on to that it does not promise. A new redis-py that differs fails here.

Each entry says who relies on it. Where one is gone, look at what took its place before anything
else: an answer that goes to the wrong caller is what is at stake.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
import redis.asyncio.client
import redis.asyncio.cluster
import redis.asyncio.connection as aio
import redis.client
import redis.cluster
import redis.connection as sync
from redis._parsers.hiredis import _HiredisParser
from redis._parsers.socket import SocketBuffer
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from holdfast.adapters.redis.settings import Settings
from holdfast.adapters.redis.variants import kind_of, plain, variant


def names(call: Any) -> list[str]:
    return list(inspect.signature(call).parameters)


def source(call: Any) -> str:
    return inspect.getsource(call)


@pytest.mark.parametrize("kind", [aio.AbstractConnection, sync.AbstractConnection])
def test_connections_have_the_methods_that_we_take_the_place_of(kind: Any) -> None:
    assert names(kind.send_packed_command)[:3] == ["self", "command", "check_health"]
    assert names(kind.pack_command) == ["self", "args"]
    assert names(kind.pack_commands) == ["self", "commands"]
    assert names(kind.connect_check_health)[:2] == ["self", "check_health"]
    assert names(kind.check_health) == ["self"]
    found = names(kind.read_response)
    assert found[:2] == ["self", "disable_decoding"]
    assert {"disconnect_on_error", "push_request"} <= set(found)
    assert "self.retry.call_with_retry" in source(kind.connect)


def test_a_connection_for_a_loop_sends_and_reads_as_we_do_it() -> None:
    kind: Any = aio.AbstractConnection
    sends = source(kind.send_packed_command)
    for part in ("connect_check_health(check_health=False)", "check_health()", "writelines("):
        assert part in sends, "OnLoop.send_packed_command does what that one does"
    assert "self.pack_command(*args)" in source(kind.send_command)
    assert "self.pack_command(*cmd)" in source(kind.pack_commands), "counted there"
    assert names(kind.read_response)[2] == "timeout"
    assert "nowait" in names(kind.disconnect)
    assert "self._writer" in source(kind.disconnect)
    made = aio.Connection()
    assert all(hasattr(made, name) for name in ("_reader", "_writer", "socket_timeout"))
    assert "retry" in vars(made), "kept there by a property of ours"


def test_a_connection_for_threads_sends_and_dials_as_we_do_it() -> None:
    kind: Any = sync.AbstractConnection
    assert "self._command_packer.pack(*args)" in source(kind.send_command)
    sends = source(kind.send_packed_command)
    for part in ("connect_check_health(check_health=False)", "check_health()", "_sock.sendall("):
        assert part in sends, "InThread.send_packed_command does what that one does"
    assert "sock = self._connect()" in source(kind.connect_check_health)
    tcp: Any = sync.Connection
    for part in ("self.socket_type", "TCP_NODELAY", "SO_KEEPALIVE", "IPPROTO_TCP, k, v"):
        assert part in source(tcp._connect), "InThread._dialled does what that one does"
    tls: Any = sync.SSLConnection
    assert "self._wrap_socket_with_ssl(sock)" in source(tls._connect)
    assert {"_sock", "socket_keepalive_options", "retry"} <= set(vars(sync.Connection()))
    assert "sock.recv_into(self._buffer)" in source(_HiredisParser.read_from_socket)
    assert "sock.recv(socket_read_size)" in source(SocketBuffer._read_from_socket)


def test_pools_keep_their_connections_where_we_look() -> None:
    pool: Any = aio.ConnectionPool()
    assert isinstance(pool._available_connections, list)
    assert isinstance(pool._in_use_connections, set)
    assert "connection_class" in vars(pool)
    assert not inspect.iscoroutinefunction(pool.can_get_connection)
    assert "self.ensure_connection(connection)" in source(aio.ConnectionPool.get_connection)
    assert "self.ensure_connection(connection)" in source(aio.BlockingConnectionPool.get_connection)
    blocking: Any = aio.BlockingConnectionPool()
    assert isinstance(blocking._condition, asyncio.Condition)
    threads: Any = sync.ConnectionPool()
    assert isinstance(threads._available_connections, list)
    assert isinstance(threads._in_use_connections, set)
    assert hasattr(threads._lock, "acquire")
    waiting: Any = sync.BlockingConnectionPool()
    assert "timeout" in vars(waiting)
    assert "timeout=self.timeout" in source(sync.BlockingConnectionPool.get_connection)
    assert isinstance(waiting._connections, list)


def test_retries_are_as_ours_are() -> None:
    for kind in (Retry, AsyncRetry):
        call: Any = kind.call_with_retry
        assert names(call)[:3] == ["self", "do", "fail"]
        made: Any = kind(NoBackoff(), 1)
        assert {"_backoff", "_retries", "_supported_errors"} <= set(vars(made))


def test_pipelines_send_a_transaction_in_one_piece() -> None:
    for kind in (redis.client.Pipeline, redis.asyncio.client.Pipeline):
        made: Any = kind
        assert names(made._execute_transaction)[:3] == ["self", "connection", "commands"]
        text = source(made._execute_transaction)
        assert "pack_commands(" in text
        assert "send_packed_command(" in text
        assert "self.watching" in source(made.reset)
        assert "self.connection_pool.release(" in source(made.reset)


def test_clusters_make_nodes_where_we_look() -> None:
    nodes: Any = redis.cluster.NodesManager
    assert "create_redis_node" in vars(nodes)
    node: Any = redis.asyncio.cluster.ClusterNode
    assert {"connection_class", "_connections", "connection_kwargs"} <= set(node.__slots__)
    assert "self.connection_class(" in source(node.acquire_connection)
    assert "self.connection_kwargs" in source(redis.asyncio.cluster.NodesManager.initialize)
    assert "should_reconnect()" in source(node.release), "who is owed an answer is closed there"


def test_an_object_can_take_on_a_class_of_ours() -> None:
    settings = Settings()

    class Ours(aio.AbstractConnection):
        pass

    made: Any = aio.Connection()
    made.__class__ = variant(Ours, aio.Connection, settings)
    assert isinstance(made, aio.Connection)
    assert made.holdfast is settings
    assert plain(kind_of(made)) is aio.Connection
    assert plain(aio.Connection) is aio.Connection
