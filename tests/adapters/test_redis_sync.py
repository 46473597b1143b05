"""redis-py in threads: every wait ends with the scope, whatever the server does."""

from __future__ import annotations

import contextvars
import random
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from redis.backoff import ConstantBackoff
from redis.retry import Retry

import holdfast
from holdfast.adapters.redis import instrument, pool_of, uninstrument
from holdfast.runtime.clock import monotonic
from holdfast.testing.proxy import FaultProxy
from tests.adapters.redis_bed import BUDGET, ENDED, KINDS, eventually_blocking, listed, of_thread
from tests.peers.process import free_port
from tests.peers.redis import redis_running

pytestmark = pytest.mark.system


@pytest.fixture(name="proxy")
def proxy_before(redis_server: Any) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


def ends(call: Any, budget: float = BUDGET) -> BaseException:
    """The error of a call that ends at its deadline."""
    began = monotonic()
    with pytest.raises(holdfast.DeadlineExceeded) as late, holdfast.timeout(budget):
        call()
    assert monotonic() - began < ENDED
    assert isinstance(late.value, redis.TimeoutError)
    return late.value


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_does_is_what_it_did(redis_server: Any, kind: str) -> None:
    with of_thread(redis_server.port, kind) as client, holdfast.timeout(30.0):
        assert client.set("plain", "1")
        assert client.get("plain") == "1"
        assert client.execute_command("echo", "x" * 100_000) == "x" * 100_000
        assert client.pipeline().incr("plain").get("plain").execute() == [2, "2"]
        assert client.pipeline(transaction=False).incr("plain").get("plain").execute() == [3, "3"]
        with pytest.raises(redis.ResponseError):
            client.lpush("plain", "x")
        assert client.get("plain") == "3"
        (connection,) = client.connection_pool._available_connections
        assert connection.owed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_server_frees_the_caller_at_the_deadline(proxy: FaultProxy, kind: str) -> None:
    with of_thread(proxy.port, kind) as client:
        client.mset({"a": "A", "b": "B"})
        proxy.to_client.stall()
        error = ends(lambda: client.get("a"))
        assert "GET" in str(error)
        proxy.heal()
        assert client.get("b") == "B"


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_trickle_do_not_hold_the_deadline_up(proxy: FaultProxy, kind: str) -> None:
    with of_thread(proxy.port, kind) as client:
        client.set("long", "x" * 1000)
        proxy.to_client.trickle(40.0)
        ends(lambda: client.get("long"))
        proxy.heal()
        assert client.get("long") == "x" * 1000


def test_a_server_that_takes_nothing_frees_the_caller_too(proxy: FaultProxy) -> None:
    with of_thread(proxy.port, options={"socket_timeout": None}) as client:
        client.ping()
        proxy.to_server.stall()
        ends(lambda: client.set("big", "x" * 40_000_000))
        proxy.heal()
        assert client.ping()


@pytest.mark.parametrize("options", [{}, {"password": "secret", "db": 3}, {"socket_timeout": None}])
def test_the_handshake_ends_at_the_deadline(proxy: FaultProxy, options: dict[str, Any]) -> None:
    with of_thread(proxy.port, options=options) as client:
        proxy.to_client.stall()
        ends(lambda: client.get("a"))


def test_a_dial_that_gets_no_answer_ends_at_the_deadline(proxy: FaultProxy) -> None:
    proxy.blackhole()
    with of_thread(proxy.port, options={"socket_connect_timeout": None}) as client:
        ends(lambda: client.get("a"))


def test_a_name_that_nobody_knows_in_time_is_not_waited_for() -> None:
    with of_thread(1, options={"retry": Retry(ConstantBackoff(0.0), 3)}) as client:
        client.connection_pool.connection_kwargs["host"] = "nobody.invalid"
        began = monotonic()
        with pytest.raises(redis.RedisError), holdfast.timeout(1.0):
            client.get("a")
        assert monotonic() - began < ENDED


def test_waiting_for_a_place_ends_at_the_deadline(redis_server: Any) -> None:
    options = {"max_connections": 1, "timeout": None}
    with of_thread(redis_server.port, blocking=True, options=options) as client:
        pool = client.connection_pool
        taken = pool.get_connection()
        ends(client.ping)
        pool.release(taken)
        assert client.ping()
        assert pool.timeout is None


def test_too_little_is_refused_before_anything_is_sent(proxy: FaultProxy) -> None:
    with of_thread(proxy.port, refuse_below=0.5) as client:
        with pytest.raises(holdfast.InsufficientBudget) as refused, holdfast.timeout(0.3):
            client.get("a")
        assert isinstance(refused.value, redis.TimeoutError)
        assert proxy.opened == 0


def test_an_attempt_for_which_there_is_no_time_is_not_begun(proxy: FaultProxy) -> None:
    proxy.refuse()
    with of_thread(proxy.port, options={"retry": Retry(ConstantBackoff(60.0), 5)}) as client:
        began = monotonic()
        with pytest.raises(holdfast.InsufficientBudget), holdfast.timeout(20.0):
            client.get("a")
        assert monotonic() - began < ENDED


def test_a_server_that_is_killed_and_comes_back() -> None:
    port = free_port()
    with of_thread(port) as client:
        with redis_running(port=port):
            assert client.ping()
        began = monotonic()
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)), holdfast.timeout(1.0):
            client.ping()
        assert monotonic() - began < ENDED
        with redis_running(port=port), holdfast.timeout(ENDED):
            assert client.ping()


# -- commands that wait, transactions --------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.blpop("nothing", 0),
        lambda c: c.blmove("nothing", "none", 0),
        lambda c: c.bzpopmin("nothing", 60),
        lambda c: c.blmpop(0, 1, "nothing", direction="LEFT"),
        lambda c: c.xread({"nothing": "$"}, block=0),
    ],
)
def test_the_server_stops_waiting_a_little_sooner(redis_server: Any, call: Any) -> None:
    with of_thread(redis_server.port, options={"socket_timeout": 0.15}) as client:
        client.ping()
        (before,) = listed(redis_server.port)
        error = ends(lambda: call(client), 0.5)
        assert "the server had nothing for 0." in str(error)
        (after,) = listed(redis_server.port)
        assert after["id"] == before["id"]
        assert client.ping()


def test_a_transaction_without_an_answer_has_an_unknown_outcome(proxy: FaultProxy) -> None:
    with of_thread(proxy.port) as client:
        client.set("n", 0)
        proxy.to_client.stall()
        with pytest.raises(holdfast.OutcomeUnknown) as cut, holdfast.timeout(BUDGET):
            client.pipeline().incr("n").execute()
        assert isinstance(cut.value, redis.TimeoutError)
        proxy.heal()
        assert client.get("n") == "1", "it was done, once"


def test_one_that_was_not_sent_is_known_not_to_be_done(proxy: FaultProxy) -> None:
    with of_thread(proxy.port) as client:
        client.delete("big")
        proxy.to_server.stall()
        ends(lambda: client.pipeline().set("big", "x" * 40_000_000).execute())
        proxy.heal()
        assert not client.exists("big")


def test_what_was_watched_is_forgotten_when_time_is_up(proxy: FaultProxy) -> None:
    with of_thread(proxy.port, options={"max_connections": 1}) as client:

        def watching() -> None:
            with client.pipeline() as pipeline:
                pipeline.watch("n")
                proxy.to_client.stall()
                pipeline.get("n")

        ends(watching)
        proxy.heal()
        client.set("n", 5)
        assert client.pipeline().get("n").execute() == ["5"]


def test_a_callback_that_fails_leaves_no_answer_behind(redis_server: Any) -> None:
    with of_thread(redis_server.port, options={"max_connections": 1}) as client:
        client.mset({"a": "A", "b": "B"})

        def broken(_: Any, **__: Any) -> Any:
            raise ValueError("of the callback")

        client.set_response_callback("GET", broken)
        with pytest.raises(ValueError, match="of the callback"):
            client.pipeline(transaction=False).get("a").echo("not yours").execute()
        del client.response_callbacks["GET"]
        assert client.get("b") == "B"


# -- many threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_threads_get_their_own_answers(redis_server: Any, kind: str) -> None:
    """About half of the calls are cut at the deadline."""
    wrong: list[str] = []
    done = cut = 0
    lock = threading.Lock()
    options = {"max_connections": 20, "timeout": None}
    with (
        FaultProxy("127.0.0.1", redis_server.port) as proxy,
        of_thread(proxy.port, kind, blocking=True, options=options) as client,
    ):
        client.ping()
        proxy.to_client.delay(0.004, jitter=0.003)

        def work(number: int) -> None:
            nonlocal done, cut
            dice = random.Random(number)
            for n in range(12):
                token = f"{number}-{n}"
                try:
                    with holdfast.timeout(0.2 + dice.random() * 0.2 if n % 2 else 0.004):
                        got = client.echo(token)
                except (holdfast.DeadlineExceeded, redis.TimeoutError):
                    with lock:
                        cut += 1
                else:
                    with lock:
                        done += 1
                        wrong.extend([got] if got != token else [])

        with ThreadPoolExecutor(50) as threads:
            list(threads.map(lambda n: contextvars.copy_context().run(work, n), range(50)))
        proxy.heal()
        assert not wrong
        assert cut
        assert done + cut == 600
        eventually_blocking(lambda: len(listed(redis_server.port)) <= 20)
        texts = [str(n) for n in range(20)]
        with ThreadPoolExecutor(20) as threads:
            assert list(threads.map(client.echo, texts)) == texts


# -- TLS, Unix sockets, a cache --------------------------------------------------------------------


def test_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=number > 0)
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    port = free_port()
    tls = [
        "--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert.pem"),
        "--tls-key-file", str(tmp_path / "key.pem"), "--tls-ca-cert-file", str(tmp_path / "ca.pem"),
        "--tls-auth-clients", "no",
    ]  # fmt: skip
    with redis_running(*tls), FaultProxy("127.0.0.1", port) as proxy:
        client = instrument(
            redis.Redis(port=proxy.port, ssl=True, ssl_ca_certs=str(tmp_path / "ca.pem"))
        )
        with holdfast.timeout(ENDED):
            assert client.echo("over TLS") == b"over TLS"
        proxy.to_client.stall()
        ends(lambda: client.echo("late"))
        proxy.heal()
        with holdfast.timeout(ENDED):
            assert client.echo("after") == b"after"
        client.close()
        proxy.to_client.stall()
        ends(lambda: client.echo("no handshake"))
        client.close()
    assert ssl.HAS_TLSv1_3


def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_running("--unixsocket", str(path)):
        client = instrument(redis.Redis(unix_socket_path=str(path)))
        with holdfast.timeout(ENDED):
            assert client.echo("here") == b"here"
        ends(lambda: client.blpop("nothing", 0), 0.4)
        client.close()


def test_it_can_be_undone_and_done_again(proxy: FaultProxy) -> None:
    with of_thread(proxy.port, ours=False, blocking=True) as client:
        pool = client.connection_pool
        kinds = type(client), type(pool), pool.connection_class
        client.ping()
        for _ in range(2):
            assert instrument(client) is client
            proxy.to_client.stall()
            ends(client.ping)
            proxy.heal()
            assert client.ping()
            assert uninstrument(client) is client
            assert (type(client), type(pool), pool.connection_class) == kinds
            assert client.ping()


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.real_time
async def test_a_stop_closes_what_is_idle(redis_server: Any, blocking: bool) -> None:
    with of_thread(redis_server.port, blocking=blocking) as client:
        assert client.ping()
        assert len(listed(redis_server.port)) == 1
        assert await pool_of(client).preclean(5.0) == 1
        assert listed(redis_server.port) == []
        assert client.ping()
        assert listed(redis_server.port) == []
