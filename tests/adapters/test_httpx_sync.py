"""The synchronous carrier: nothing can be cancelled, everything is bounded."""

# ruff: noqa: SIM117 - a scope inside a client reads better as a block of its own

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import httpx2
import pytest

import holdfast
from holdfast.adapters.httpx import HoldfastTransport, instrument, uninstrument
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.wire.problem import encode_cause_header, problem
from holdfast.runtime.clock import monotonic

BUDGET = "x-envoy-expected-rq-timeout-ms"
PATIENCE = 0.02


class Peer:
    def __init__(self) -> None:
        self.url = ""
        self.opened = 0
        self.over = threading.Event()


@contextmanager
def peer(serve: Callable[[Peer, socket.socket], None]) -> Iterator[Peer]:
    me = Peer()
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with connection:
            with suppress(OSError):
                serve(me, connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if me.over.is_set():
                connection.close()
                return
            me.opened += 1
            connection.settimeout(5)
            threads.append(threading.Thread(target=handle, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        me.url = f"http://127.0.0.1:{address[1]}"
        door = threading.Thread(target=accept)
        door.start()
        try:
            yield me
        finally:
            me.over.set()
            socket.create_connection(address).close()
            door.join()
    for thread in threads:
        thread.join(5)


def trickle(me: Peer, connection: socket.socket, data: bytes) -> None:
    for i in range(len(data)):
        connection.sendall(data[i : i + 1])
        if me.over.wait(PATIENCE):
            return


def drip(me: Peer, connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    trickle(me, connection, b"x" * 1000)


def drip_head(me: Peer, connection: socket.socket) -> None:
    connection.recv(65536)
    trickle(me, connection, b"HTTP/1.1 200 OK\r\nx-long: " + b"y" * 1000)


def drip_second_head(me: Peer, connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    drip_head(me, connection)


def silent(me: Peer, connection: socket.socket) -> None:
    while not me.over.is_set() and connection.recv(65536):
        pass


def deaf(me: Peer, connection: socket.socket) -> None:
    me.over.wait(5)


def quick(me: Peer, connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def lib(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    # The first request of a client imports what it needs, and that takes longer than the budgets.
    with peer(quick) as server:
        for each in (httpx, httpx2):
            with each.Client(trust_env=False) as http:
                http.get(server.url)


@pytest.mark.parametrize("serve", [drip, drip_head, silent])
def test_the_deadline_holds_against_a_trickle(lib: Any, serve: Any) -> None:
    with peer(serve) as server, instrument(lib.Client(trust_env=False)) as http:
        begun = monotonic()
        with pytest.raises(lib.TimeoutException) as caught:
            with holdfast.timeout(0.2, name="charge"):
                http.get(server.url)
        assert 0.19 <= monotonic() - begun < 3
        assert isinstance(caught.value, holdfast.DeadlineExceeded)
        cause = caught.value.cause
        assert cause.scope == "charge/GET 127.0.0.1/"
        assert ("body" if serve is drip else "response") in cause.detail
        assert not http._transport.inner._pool._requests


def test_a_tls_handshake_ends_at_the_deadline(lib: Any) -> None:
    with peer(silent) as server, instrument(lib.Client(trust_env=False)) as http:
        begun = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.2):
            http.get(server.url.replace("http:", "https:"))
        assert 0.19 <= monotonic() - begun < 3


def test_an_upload_that_nobody_takes_ends_at_the_deadline(lib: Any) -> None:
    with peer(deaf) as server, instrument(lib.Client(trust_env=False)) as http:
        begun = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.2):
            http.post(server.url, content=b"z" * 50_000_000)
        assert 0.19 <= monotonic() - begun < 3


def test_a_connection_from_before_is_bounded_too(lib: Any) -> None:
    with peer(drip_second_head) as server, lib.Client(trust_env=False) as http:
        assert http.get(server.url).text == "ok"
        instrument(http)
        begun = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.2):
            http.get(server.url)
        assert 0.19 <= monotonic() - begun < 3
        assert server.opened == 1


def test_a_wait_for_the_pool_ends_at_the_deadline(lib: Any) -> None:
    limits = lib.Limits(max_connections=1)
    with peer(drip) as server, instrument(lib.Client(limits=limits, trust_env=False)) as http:
        with http.stream("GET", server.url):
            begun = monotonic()
            with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.1):
                http.get(server.url)
            assert 0.09 <= monotonic() - begun < 3
        assert server.opened == 1


def test_a_body_read_elsewhere_keeps_its_deadline(lib: Any) -> None:
    with peer(drip) as server, instrument(lib.Client(trust_env=False)) as http:
        with holdfast.timeout(0.2, name="charge"):
            response = http.send(http.build_request("GET", server.url), stream=True)
        with pytest.raises(lib.TimeoutException, match=r"reading the body, [0-9]+ bytes received"):
            response.read()
        response.close()


def test_refused_before_dialling(lib: Any) -> None:
    with peer(quick) as server, instrument(lib.Client(trust_env=False), refuse_below=1.0) as http:
        with holdfast.timeout(0.5), pytest.raises(holdfast.InsufficientBudget) as caught:
            http.get(server.url)
        assert isinstance(caught.value, lib.TimeoutException)
        assert caught.value.cause.budget == pytest.approx(0.5)
        assert server.opened == 0


def test_inside_a_coroutine_it_works_as_before(lib: Any) -> None:
    # Bad for the loop, but people do it.
    import asyncio

    async def main() -> None:
        with peer(quick) as server, instrument(lib.Client(trust_env=False)) as http:
            async with holdfast.timeout(1.0):
                assert http.get(server.url).text == "ok"

    asyncio.run(main())


def test_without_a_scope_and_after_uninstrument_nothing_changes(lib: Any) -> None:
    with peer(quick) as server, instrument(lib.Client(trust_env=False)) as http:
        assert http.get(server.url).text == "ok"
        uninstrument(http)
        with holdfast.timeout(1.0):
            response = http.get(server.url)
        assert BUDGET not in response.request.headers
        assert type(http._transport) is lib.HTTPTransport
        assert server.opened == 1


def test_a_504_of_the_hop_below(lib: Any) -> None:
    theirs = Cause(CauseKind.DEADLINE, "charge/db", "orders", budget=0.2, elapsed=0.21)
    seen: list[str] = []

    def handler(request: Any) -> Any:
        seen.append(request.headers[BUDGET])
        headers = {
            "deadline-exceeded": encode_cause_header(theirs),
            "content-type": "application/problem+json",
        }
        return lib.Response(504, headers=headers, content=problem(theirs, status=504))

    inner = lib.MockTransport(handler)
    with lib.Client(transport=HoldfastTransport(inner)) as http, holdfast.timeout(1.0):
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            http.get("http://orders.local/")
    assert caught.value.cause.below[0].scope == "charge/db"
    transport = HoldfastTransport(inner, raise_for_deadline=False)
    with lib.Client(transport=transport) as http, holdfast.timeout(1.0):
        assert http.get("http://orders.local/").json()["scope"] == "charge/db"
    assert all(900 < int(left) < 1000 for left in seen)
