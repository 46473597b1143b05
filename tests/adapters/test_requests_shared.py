"""requests and urllib3: clients that share what is below them, and less usual targets."""

# ruff: noqa: SIM117 - a client inside its server reads better as a block of its own

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

import holdfast
from holdfast.adapters.requests import instrument, uninstrument
from holdfast.domain.phases import Trail
from tests.runtime.peering import Peer, peer

pytestmark = pytest.mark.system

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers everything, and notes the heads of the requests."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.peers: list[Any] = []

    def __call__(self, me: Peer, sock: socket.socket) -> None:
        text = b""
        self.peers.append(sock.getpeername())
        while data := sock.recv(65536):
            text += data
            chunked = b"chunked" in text
            if text.endswith(b"0\r\n\r\n" if chunked else b"\r\n\r\n"):
                self.heads.append(text.decode())
                text = b""
                sock.sendall(OK)


def told(server: Server, get: Any, url: str) -> bool:
    """Whether a call tells the server what is left."""
    with holdfast.timeout(20):
        assert get(url)
    return "rq-timeout" in server.heads[-1].lower()


@pytest.mark.parametrize("first", [0, 1])
def test_sessions_that_share_an_adapter_are_undone_one_by_one(first: int) -> None:
    serve = Server()
    adapter: Any = HTTPAdapter()
    before = (dict(adapter.__dict__), dict(adapter.poolmanager.__dict__))
    sessions = [requests.Session(), requests.Session()]
    for session in sessions:
        session.mount("http://", adapter)
        instrument(session)
    with peer(serve) as server:
        url = f"http://127.0.0.1:{server.port}/"
        one, other = sessions[first], sessions[1 - first]
        uninstrument(one)
        assert not told(serve, one.get, url)
        assert told(serve, other.get, url)
        uninstrument(other)
        assert not told(serve, other.get, url)
        adapter.close()
    assert (dict(adapter.__dict__), dict(adapter.poolmanager.__dict__)) == before


def test_adapters_that_share_their_pools_are_undone_one_by_one() -> None:
    serve = Server()
    manager = urllib3.PoolManager()
    kinds = manager.pool_classes_by_scheme
    session, adapter = requests.Session(), HTTPAdapter()

    def get(at: str) -> Any:
        return manager.request("GET", at)

    adapter.poolmanager = manager
    session.mount("http://", adapter)
    instrument(session)
    instrument(manager)
    with peer(serve) as server, manager:
        url = f"http://127.0.0.1:{server.port}/"
        uninstrument(manager)
        assert not told(serve, get, url)
        assert told(serve, session.get, url)
        instrument(manager)
        uninstrument(session)
        assert told(serve, get, url)
        assert not told(serve, session.get, url)
        uninstrument(manager)
    assert manager.pool_classes_by_scheme is kinds
    assert not [name for name in vars(manager) if "holdfast" in name]


def test_what_is_mounted_later_is_instrumented_too() -> None:
    serve = Server()
    session = instrument(requests.Session())
    adapter = HTTPAdapter()
    session.mount("http://", adapter)
    with peer(serve) as server, session:
        url = f"http://127.0.0.1:{server.port}/"
        assert told(serve, session.get, url)
        uninstrument(session)
        assert not told(serve, session.get, url)
    assert "send" not in vars(adapter)
    assert "mount" not in vars(session)


class Observer:
    def __init__(self) -> None:
        self.trails: list[Trail] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.trails.append(trail)


def test_a_call_inside_of_a_body_is_no_redirect() -> None:
    observer = Observer()
    session = instrument(requests.Session(), observer=observer)
    with peer(Server()) as server, session:
        url = f"http://127.0.0.1:{server.port}/"

        def body() -> Iterator[bytes]:
            yield b"a"
            assert session.get(url + "inner").content == b"ok"

        session.post(url + "outer", data=body())
    assert [trail.redirects for trail in observer.trails] == [0, 0]
    assert [trail.target.rpartition("/")[2] for trail in observer.trails] == ["inner", "outer"]


def test_a_redirect_to_another_host_is_told_as_that_host() -> None:
    def silent(me: Peer, sock: socket.socket) -> None:
        while sock.recv(65536):
            pass

    with peer(silent) as second:
        there = f"http://localhost:{second.port}/there"

        def first(me: Peer, sock: socket.socket) -> None:
            sock.recv(65536)
            head = f"HTTP/1.1 302 Found\r\nlocation: {there}\r\ncontent-length: 0\r\n\r\n"
            sock.sendall(head.encode())

        with peer(first) as server, instrument(urllib3.PoolManager()) as manager:
            with pytest.raises(holdfast.DeadlineExceeded) as caught, holdfast.timeout(0.5):
                manager.request("GET", f"http://127.0.0.1:{server.port}/here")
    trail = caught.value.trail
    assert trail is not None
    assert trail.target == f"GET {there}"
    assert trail.redirects == 1
    assert "localhost/there" in str(caught.value.cause.scope)


URLS = ["http://[::1", "http://a b/", "http://x:99999/", "http://x:abc/", "//x", "", "ftp://x/"]
URLS.append(f"http://{'a' * 70}.com/")


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", [urllib3.PoolManager, requests.Session])
def test_a_bad_url_is_an_error_of_the_library(kind: Any, url: str) -> None:
    errors: list[type[BaseException]] = []
    for client in (kind(), instrument(kind())):
        options = {} if kind is requests.Session else {"retries": False}
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it is the same
            with holdfast.timeout(5):
                client.request("GET", url, **options)
        errors.append(caught.type)
    assert errors[0] is errors[1]


def test_a_port_of_ones_own_is_kept() -> None:
    serve = Server()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with peer(serve) as server:
        pool = urllib3.HTTPConnectionPool(
            "127.0.0.1", server.port, source_address=("127.0.0.1", port), retries=False
        )
        instrument(pool)
        with pool, holdfast.timeout(20):
            assert pool.request("GET", "/").data == b"ok"
    assert serve.peers == [("127.0.0.1", port)]


def test_a_time_out_of_requests_in_a_body_says_where() -> None:
    def stalling(me: Peer, sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(OK[:-1])
        sock.recv(1)

    with peer(stalling) as server, instrument(requests.Session()) as session:
        with pytest.raises(requests.ConnectionError) as caught:
            session.get(f"http://127.0.0.1:{server.port}/", timeout=0.2)
    assert "http.body.timeout" in caught.value.__notes__[-1]
