"""requests and urllib3: pools, their attempts and pauses, and less usual ways to connect."""

# ruff: noqa: SIM117 - a client inside its server reads better as a block of its own

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
from urllib3.util import Retry, Timeout

import holdfast
from holdfast.adapters.requests import instrument, uninstrument
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.discovery.names import Answer
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.domain.wire.problem import encode_cause_header, problem
from holdfast.ports.lookup import Done
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import Resolver
from tests.adapters.rude import FullQueue, Rude
from tests.runtime.peering import Peer, drip, full_queue, peer

pytestmark = pytest.mark.system

BUDGET = 0.4
ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""


class Three:
    kinds = ("ADDRESS",)
    asks = "a book"

    def start(self, name: str, kind: str, done: Done) -> Callable[[], object]:
        done(Answer(("127.0.0.1", "127.0.0.2", "127.0.0.3"), NEVER))
        return lambda: None


@pytest.fixture(scope="module", name="rude")
def rude_server() -> Iterator[Rude]:
    with Rude() as rude:
        yield rude


@pytest.fixture(scope="module", name="authority")
def an_authority() -> trustme.CA:
    return trustme.CA()


def late(call: Callable[[], object], phase: Phase) -> Trail:
    began = monotonic()
    with pytest.raises(holdfast.DeadlineExceeded) as caught, holdfast.timeout(BUDGET):
        call()
    assert BUDGET - 0.02 <= monotonic() - began < ENDED
    assert caught.value.phase is phase, caught.value.trail
    assert caught.value.trail is not None
    return caught.value.trail


# -- attempts and pauses ---------------------------------------------------------------------------


def test_attempts_of_the_library_share_one_budget(rude: Rude) -> None:
    with instrument(urllib3.PoolManager(retries=Retry(50))) as manager:
        trail = late(lambda: manager.request("GET", rude.url("/silent"), timeout=0.1), Phase.HEADER)
    assert sum(step.phase is Phase.HEADER for step in trail.steps) >= 3


@pytest.mark.parametrize("way", ["backoff", "retry-after"])
def test_a_pause_that_is_longer_than_the_rest_is_not_begun(way: str, rude: Rude) -> None:
    def busy(me: Peer, sock: socket.socket) -> None:
        while sock.recv(65536):
            sock.sendall(b"HTTP/1.1 503 Busy\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n")

    session = instrument(requests.Session())
    retries = Retry(5, backoff_factor=60, status_forcelist=[503])
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
    instrument(session)  # also what was mounted since
    began = monotonic()
    with peer(busy) as server:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            nobody = listener.getsockname()[1]
        port = nobody if way == "backoff" else server.port
        with pytest.raises(holdfast.InsufficientBudget, match="another attempt") as caught:
            with holdfast.timeout(20.0):
                session.get(f"http://127.0.0.1:{port}/")
        session.close()
    assert isinstance(caught.value, requests.Timeout)
    assert monotonic() - began < ENDED


def test_a_short_pause_is_made() -> None:
    answers = [b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"]

    def recovering(me: Peer, sock: socket.socket) -> None:
        while sock.recv(65536):
            good = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            sock.sendall(answers.pop() if answers else good)

    retries = Retry(3, backoff_factor=0.01, status_forcelist=[503])
    with peer(recovering) as server, instrument(urllib3.PoolManager(retries=retries)) as manager:
        with holdfast.timeout(10.0):
            url = f"http://127.0.0.1:{server.port}/"
            assert manager.request("GET", url).data == b"ok"


def test_a_place_in_the_pool(rude: Rude) -> None:
    with instrument(urllib3.PoolManager(maxsize=1, block=True)) as manager:
        held = manager.request("GET", rude.url("/body-trickle"), preload_content=False)
        late(lambda: manager.request("GET", rude.url("/")), Phase.POOL)
        held.close()
        held.release_conn()
        with holdfast.timeout(10):
            assert manager.request("GET", rude.url("/")).data == b"ok"


def test_a_place_in_the_pool_has_a_share(rude: Rude) -> None:
    shares = Shares(floors={}, bounded=(Phase.POOL,))
    manager = instrument(urllib3.PoolManager(maxsize=1, block=True), shares=shares)
    with manager:
        held = manager.request("GET", rude.url("/body-trickle"), preload_content=False)
        with holdfast.timeout(3.0), pytest.raises(PhaseTimeout) as caught:
            manager.request("GET", rude.url("/"))
        held.close()
    assert caught.value.phase is Phase.POOL


def test_any_phase_can_be_bounded(rude: Rude) -> None:
    weights = {Phase.HEADER: 0.1, Phase.BODY: 1.0}
    shares = Shares(weights=weights, floors={}, bounded=(Phase.HEADER,))
    session = instrument(requests.Session(), shares=shares)
    with session, holdfast.timeout(4.0), pytest.raises(PhaseTimeout) as caught:
        session.get(rude.url("/header-trickle"))
    assert caught.value.phase is Phase.HEADER
    assert isinstance(caught.value, requests.ReadTimeout)


def test_a_bare_pool_makes_its_attempts_in_one_call(rude: Rude) -> None:
    told: list[Trail] = []

    class Observer:
        def call_ended(self, trail: Trail, error: BaseException | None) -> None:
            told.append(trail)

    with urllib3.HTTPConnectionPool("127.0.0.1", rude.port, retries=Retry(30)) as pool:
        instrument(pool, observer=Observer())
        late(lambda: pool.request("GET", "/silent", timeout=Timeout(read=0.1)), Phase.HEADER)
        with holdfast.timeout(5):
            assert pool.request("GET", "/").data == b"ok"
        uninstrument(pool)
        assert type(pool) is urllib3.HTTPConnectionPool
        assert pool.request("GET", "/").data == b"ok"
    assert len(told) == 2


def test_a_body_that_makes_calls_while_it_is_sent(rude: Rude) -> None:
    session = instrument(requests.Session())
    manager = instrument(urllib3.PoolManager())
    inner: list[holdfast.DeadlineExceeded] = []

    def parts() -> Iterator[bytes]:
        yield b"one"
        for call in (
            lambda: session.get(rude.url("/silent")),
            lambda: manager.request("GET", rude.url("/silent")),
        ):
            try:
                with holdfast.timeout(0.1):
                    call()
            except holdfast.DeadlineExceeded as exc:
                inner.append(exc)
        yield b"two"

    def taking(me: Peer, sock: socket.socket) -> None:
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += sock.recv(4096)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with peer(taking) as server, session, manager, holdfast.timeout(20):
        url = f"http://127.0.0.1:{server.port}/"
        assert session.post(url, data=parts()).text == "ok"
    assert [exc.phase for exc in inner] == [Phase.HEADER, Phase.HEADER]


# -- ways to connect -------------------------------------------------------------------------------


def test_three_addresses_that_do_not_answer() -> None:
    session = instrument(requests.Session(), resolver=Resolver(Three()))
    with full_queue("0.0.0.0") as port, session:
        trail = late(lambda: session.get(f"http://three.test:{port}/"), Phase.CONNECT)
    assert len(trail.attempts) == 3


def test_a_tls_handshake_that_trickles() -> None:
    def trickle(me: Peer, sock: socket.socket) -> None:
        sock.sendall(b"\x16\x03\x03\x40\x00")
        drip(me, sock)

    with peer(trickle) as server:
        url = f"https://127.0.0.1:{server.port}/"
        with instrument(requests.Session()) as session:
            late(lambda: session.get(url), Phase.TLS)
        with instrument(urllib3.PoolManager()) as manager:
            late(lambda: manager.request("GET", url), Phase.TLS)


def test_a_proxy_whose_answer_trickles() -> None:
    def trickle(me: Peer, sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b"HTTP/1.1 200 Connected\r\nx-slow: ")
        drip(me, sock)

    with peer(trickle) as server:
        with instrument(urllib3.ProxyManager(f"http://127.0.0.1:{server.port}")) as manager:
            trail = late(lambda: manager.request("GET", "https://orders.invalid/"), Phase.PROXY)
    assert f"via 127.0.0.1:{server.port}" in trail.target


def test_a_forwarding_proxy(rude: Rude) -> None:
    with instrument(requests.Session()) as session:
        proxies = {"http": rude.url("/")}
        rude.heads.clear()
        url = "http://orders.invalid/silent"
        late(lambda: session.get(url, proxies=proxies), Phase.HEADER)
    assert "x-envoy-expected-rq-timeout-ms: " in rude.heads[0].lower()


def test_tls_inside_of_tls(authority: trustme.CA, tmp_path: Path) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def tunnel(me: Peer, sock: socket.socket) -> None:
        with server_side.wrap_socket(sock, server_side=True) as tls:
            while b"\r\n\r\n" not in tls.recv(4096):
                pass
            tls.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            tls.recv(4096)
            tls.sendall(b"\x16\x03\x03\x40\x00")
            drip(me, tls)

    with peer(tunnel) as server:
        proxy = f"https://127.0.0.1:{server.port}"
        with instrument(urllib3.ProxyManager(proxy, proxy_ssl_context=trusting)) as manager:
            late(lambda: manager.request("GET", "https://orders.invalid/"), Phase.TLS)


def test_classes_of_ones_own_are_bounded(rude: Rude) -> None:
    seen: list[str] = []

    class Connection(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            seen.append(self.host)
            super().connect()

    class Own(urllib3.HTTPConnectionPool):
        ConnectionCls = Connection

    class Dialling(urllib3.connection.HTTPConnection):
        def _new_conn(self) -> socket.socket:
            seen.append(f"{self.timeout:.1f}")
            return socket.create_connection((self.host, self.port), self.timeout)

    class Odd(urllib3.HTTPConnectionPool):
        ConnectionCls = Dialling

    for kind in (Own, Odd):
        manager = urllib3.PoolManager()
        manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, "http": kind}
        with instrument(manager):
            late(lambda: manager.request("GET", rude.url("/header-trickle")), Phase.HEADER)  # noqa: B023
            with FullQueue() as full:
                url = f"http://127.0.0.1:{full.port}/"
                late(lambda: manager.request("GET", url), Phase.CONNECT)  # noqa: B023
    assert seen[0] == "127.0.0.1"
    assert "0.4" in seen


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [True, False])
def test_a_problem_of_the_hop_below(preload: bool) -> None:
    theirs = Cause(CauseKind.DEADLINE, "charge/db", "orders", budget=0.2, elapsed=0.21)
    body = problem(theirs, status=504)

    def spent(me: Peer, sock: socket.socket) -> None:
        while sock.recv(65536):
            head = (
                "HTTP/1.1 504 Gateway Timeout\r\n"
                f"deadline-exceeded: {encode_cause_header(theirs)}\r\n"
                f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            sock.sendall(head.encode() + body)

    with peer(spent) as server:
        url = f"http://127.0.0.1:{server.port}/"
        for raised in (True, False):
            session = instrument(requests.Session(), raise_for_deadline=raised)
            manager = instrument(urllib3.PoolManager(), raise_for_deadline=raised)
            calls: list[Callable[[], Any]] = [
                lambda: session.get(url, stream=not preload),  # noqa: B023
                lambda: manager.request("GET", url, preload_content=preload),  # noqa: B023
            ]
            with session, manager:
                for call in calls:
                    if not raised:
                        response = call()
                        text = response.content if hasattr(response, "content") else response.data
                        assert text == body
                        continue
                    with holdfast.timeout(5), pytest.raises(holdfast.DeadlineExceeded) as caught:
                        call()
                    assert caught.value.cause.below[0].hop == "orders"


def test_nothing_is_left_open(rude: Rude) -> None:
    before = len(os.listdir("/proc/self/fd"))
    session, manager = instrument(requests.Session()), instrument(urllib3.PoolManager())
    with FullQueue() as full, session, manager:
        for url in (
            rude.url("/silent"),
            rude.url("/body-trickle"),
            f"http://127.0.0.1:{full.port}/",
        ):
            for call in (lambda: session.get(url), lambda: manager.request("GET", url)):  # noqa: B023
                with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.1):
                    call()
    assert rude.settled()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_response_that_is_read_in_another_thread(rude: Rude) -> None:
    caught: list[BaseException] = []
    with instrument(requests.Session()) as session:
        with holdfast.timeout(BUDGET):
            response = session.get(rude.url("/body-trickle"), stream=True)

        def read() -> None:
            try:
                _ = response.content
            except holdfast.DeadlineExceeded as exc:
                caught.append(exc)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(ENDED)
    assert len(caught) == 1
    assert isinstance(caught[0], requests.Timeout)
