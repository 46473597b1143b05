"""The dial for threads: the phases of one budget, real peers on loopback."""

# ruff: noqa: SIM117 - a client inside its peer reads better as a block of its own

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trustme

import holdfast
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.faults import Fault, classify
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.blockdial import connect_blocking, dial_blocking
from holdfast.runtime.net.blocking import BoundSocket
from holdfast.runtime.net.proxying import ProxyAddress
from holdfast.runtime.net.resolver import Resolver
from tests.runtime.peering import (
    ENDED,
    PACE,
    Book,
    Peer,
    descriptors,
    drip,
    echo,
    full_queue,
    peer,
    silent,
)

BUDGET = 0.3
NO_FLOORS = Shares(floors={})
BOOK = Resolver(
    Book(
        {
            "both.test": ("127.0.0.1", "127.0.0.2"),
            "good.test": ("127.0.0.1",),
            "dead.test": tuple(f"127.0.0.{n}" for n in range(1, 4)),
        }
    )
)


@contextmanager
def nothing_left() -> Iterator[None]:
    before = descriptors()
    yield
    # Peers are in this process too, and notice the end a moment later.
    until = monotonic() + ENDED
    while descriptors() > before and monotonic() < until:
        time.sleep(0.005)
    assert descriptors() <= before


def expires(dial: Callable[[], object], phase: Phase) -> holdfast.DeadlineExceeded:
    began = monotonic()
    with pytest.raises(holdfast.DeadlineExceeded) as caught, holdfast.timeout(BUDGET, name="job"):
        dial()
    assert BUDGET - 0.01 <= monotonic() - began < ENDED
    error = caught.value
    assert error.phase is phase
    assert error.trail is not None
    assert error.trail.event == phase.event
    assert error.cause.scope == "job"
    assert error.trail.line() in error.__notes__
    return error


def test_a_socket_to_a_name() -> None:
    with peer(echo) as server, nothing_left():
        with dial_blocking("good.test", server.port, resolver=BOOK) as sock:
            assert sock.getpeername() == ("127.0.0.1", server.port)
            assert sock.gettimeout() is None
            sock.sendall(b"hi")
            assert sock.recv(2) == b"hi"
            # It outlives the scope that it was dialled in, and obeys the one that it is used in.
            with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.1):
                sock.recv(1)
            sock.sendall(b"ho")
            assert sock.recv(2) == b"ho"


def test_the_time_out_is_for_dialling_alone() -> None:
    with peer(echo) as server, dial_blocking("127.0.0.1", server.port, timeout=0.2) as sock:
        server.over.wait(0.25)
        sock.sendall(b"hi")
        assert sock.recv(2) == b"hi"


def test_a_name_server_that_is_dead() -> None:
    with nothing_left():
        error = expires(lambda: dial_blocking("gone.test", 80, resolver=BOOK), Phase.DNS)
        assert "192.0.2.53" in str(error.__notes__)
        with pytest.raises(PhaseTimeout) as caught:
            dial_blocking("gone.test", 80, resolver=BOOK, timeout=1.0, shares=NO_FLOORS)
    assert caught.value.phase is Phase.DNS


def test_a_host_that_does_not_answer() -> None:
    with full_queue() as port, nothing_left():
        error = expires(lambda: dial_blocking("127.0.0.1", port), Phase.CONNECT)
        assert error.trail is not None
        assert [one.result for one in error.trail.attempts] == ["timeout"]
        tls = ssl.create_default_context()  # is to come, so connecting may not take all of it
        with pytest.raises(PhaseTimeout) as caught:
            dial_blocking("127.0.0.1", port, tls=tls, timeout=0.5, shares=NO_FLOORS)
        assert caught.value.phase is Phase.CONNECT
        assert caught.value.trail.steps[-1].share < 0.4


def test_many_addresses_have_one_budget() -> None:
    with full_queue("0.0.0.0") as port, nothing_left():
        error = expires(lambda: dial_blocking("dead.test", port, resolver=BOOK), Phase.CONNECT)
    assert error.trail is not None
    assert sorted(one.address for one in error.trail.attempts) == [
        f"127.0.0.{n}:{port}" for n in range(1, 4)
    ]
    assert {one.result for one in error.trail.attempts} == {"timeout"}


def test_the_second_address_is_tried_beside_the_first() -> None:
    with full_queue() as port, peer(echo, "127.0.0.2", port), nothing_left():
        trail = Trail("both.test", monotonic(), monotonic() + 30)
        with connect_blocking("both.test", port, trail=trail, resolver=BOOK) as sock:
            assert sock.getpeername()[0] == "127.0.0.2"
    assert [one.result for one in trail.attempts] == ["connected", "cancelled"]
    assert trail.took[Phase.CONNECT] < ENDED


def test_the_second_address_is_tried_at_once_after_a_refusal() -> None:
    with peer(echo, "127.0.0.2") as server, nothing_left():
        trail = Trail("both.test", monotonic())
        with connect_blocking("both.test", server.port, trail=trail, resolver=BOOK) as sock:
            assert sock.getpeername()[0] == "127.0.0.2"
    assert [one.result for one in trail.attempts] == ["connection refused", "connected"]


def test_everybody_refuses() -> None:
    with socket.create_server(("127.0.0.3", 0)) as listener:
        port = listener.getsockname()[1]  # which is free at the other addresses
        with nothing_left(), pytest.raises(ConnectionRefusedError) as caught:
            dial_blocking("both.test", port, resolver=BOOK)
    assert caught.value.errno == errno.ECONNREFUSED
    assert "127.0.0.1" in str(caught.value)
    assert "127.0.0.2" in str(caught.value)
    assert "tcp.connect failed" in caught.value.__notes__[0]
    assert classify(caught.value) is Fault.REFUSED


def test_a_name_that_is_none() -> None:
    with nothing_left(), pytest.raises(socket.gaierror) as caught:
        dial_blocking("x" * 300, 80, resolver=BOOK)
    assert classify(caught.value) is Fault.DNS


def test_what_a_client_allows_itself_is_its_own_error() -> None:
    for host, phase in (("gone.test", Phase.DNS), ("127.0.0.1", Phase.CONNECT)):
        with full_queue() as port, nothing_left():
            trail = Trail(host, monotonic(), monotonic() + 30)
            with pytest.raises(TimeoutError) as caught:
                connect_blocking(host, port, trail=trail, resolver=BOOK, most=0.1)
        assert type(caught.value) is TimeoutError
        assert trail.event == phase.event


def test_a_limit_that_is_spent_opens_no_socket() -> None:
    with peer(echo) as server, nothing_left():
        trail = Trail("peer", monotonic() - 1.0, monotonic() - 0.5)
        with pytest.raises(holdfast.DeadlineExceeded):
            connect_blocking("127.0.0.1", server.port, trail=trail, resolver=BOOK)
        assert trail.attempts == []


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="authority")
def an_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(name="trusting")
def a_client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(name="secure")
def a_tls_peer(authority: trustme.CA) -> Iterator[Peer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "orders.test").configure_cert(context)

    def serve(me: Peer, sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            echo(me, tls)

    with peer(serve) as server:
        yield server


def test_tls(secure: Peer, trusting: ssl.SSLContext) -> None:
    with nothing_left():
        with dial_blocking("127.0.0.1", secure.port, tls=trusting, timeout=10) as sock:
            assert sock.is_tls
            assert sock.gettimeout() is None  # and not what the handshake had left
            sock.sendall(b"hi")
            assert sock.recv(2) == b"hi"
        named = dial_blocking("127.0.0.1", secure.port, tls=trusting, server_hostname="orders.test")
        named.close()


def test_a_certificate_for_somebody_else(secure: Peer, trusting: ssl.SSLContext) -> None:
    with nothing_left(), pytest.raises(ssl.SSLCertVerificationError) as caught:
        dial_blocking("127.0.0.1", secure.port, tls=trusting, server_hostname="other.test")
    assert "tls.handshake failed" in caught.value.__notes__[0]
    assert classify(caught.value) is Fault.TLS


def tls_drip(me: Peer, sock: socket.socket) -> None:
    # The head of a record of 16 KiB, whose bytes then come one by one.
    sock.sendall(b"\x16\x03\x03\x40\x00")
    drip(me, sock)


@pytest.mark.parametrize("serve", [silent, tls_drip])
def test_a_handshake_that_goes_nowhere(
    serve: Callable[[Peer, socket.socket], None], trusting: ssl.SSLContext
) -> None:
    with peer(serve) as server, nothing_left():
        expires(lambda: dial_blocking("127.0.0.1", server.port, tls=trusting), Phase.TLS)
        # The last phase of a dial may take all that is left, so its share is the whole.
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            dial_blocking("127.0.0.1", server.port, tls=trusting, timeout=BUDGET)
        assert caught.value.phase is Phase.TLS


# -- proxies ---------------------------------------------------------------------------------------


def proxy_that_says(
    answer: bytes, then: Callable[[Peer, socket.socket], None]
) -> Callable[[Peer, socket.socket], None]:
    def serve(me: Peer, sock: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        me.seen.append(head.decode())
        for at in range(len(answer)):
            sock.sendall(answer[at : at + 1])
        then(me, sock)

    return serve


def through(server: Peer) -> Callable[[], BoundSocket]:
    proxy = ProxyAddress("127.0.0.1", server.port, [("Proxy-Authorization", "Basic c2VjcmV0")])
    return lambda: dial_blocking("orders.test", 443, proxy=proxy, resolver=BOOK)


def test_a_tunnel() -> None:
    answer = b"HTTP/1.1 103 Wait\r\n\r\nHTTP/1.1 200 Connected\r\nvia: me\r\n\r\n"
    with peer(proxy_that_says(answer, echo)) as server, nothing_left():
        with through(server)() as tunnel:
            assert tunnel.gettimeout() is None
            tunnel.sendall(b"hi")
            assert tunnel.recv(2) == b"hi"
    assert server.seen[0].startswith("CONNECT orders.test:443 HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic c2VjcmV0\r\n" in server.seen[0]


@pytest.mark.parametrize(
    "serve",
    [
        silent,
        proxy_that_says(b"HTTP/1.1 200 OK\r\nx-slow: ", drip),
    ],
    ids=["silent", "trickle"],
)
def test_a_proxy_that_goes_nowhere(serve: Callable[[Peer, socket.socket], None]) -> None:
    with peer(serve) as server, nothing_left():
        error = expires(through(server), Phase.PROXY)
    assert f"proxy 127.0.0.1:{server.port}" in error.__notes__[0]
    assert "c2VjcmV0" not in repr(error) + "".join(error.__notes__)


def test_a_proxy_that_sends_interim_responses_for_ever() -> None:
    def flood(me: Peer, sock: socket.socket) -> None:
        while not me.over.wait(PACE):
            sock.sendall(b"HTTP/1.1 103 Wait\r\n\r\n")

    with peer(proxy_that_says(b"", flood)) as server, nothing_left():
        with pytest.raises(OSError, match="interim responses without an end"):
            with holdfast.timeout(5.0):
                through(server)()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403 Forbidden"),
        (b"HTTP/1.1 503 No\n\n", "503 No"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000, "head of more than"),
        (b"", "closed before it had answered"),
    ],
)
def test_a_proxy_that_says_no(answer: bytes, says: str) -> None:
    with peer(proxy_that_says(answer, lambda me, sock: None)) as server, nothing_left():
        with pytest.raises(OSError, match=says) as caught, holdfast.timeout(10.0):
            through(server)()
    assert "proxy.connect failed" in "".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"\x15\x03\x01\x00\x02\x02\x46", "does it speak TLS"),
        (b"SSH-2.0-OpenSSH_9\r\n", "not HTTP/1.1: 'SSH-2"),
        (b"220 mail\r\n", "not HTTP/1.1: '220 m"),
    ],
)
def test_a_proxy_that_speaks_something_else_and_waits(answer: bytes, says: str) -> None:
    with peer(proxy_that_says(answer, silent)) as server, nothing_left():
        with pytest.raises(OSError, match=says) as caught, holdfast.timeout(60.0):
            through(server)()
    assert caught.value.errno == errno.EPROTO


def test_a_proxy_that_ends_its_lines_with_line_feeds_alone() -> None:
    with peer(proxy_that_says(b"HTTP/1.1 200 OK\n\n", echo)) as server, nothing_left():
        with holdfast.timeout(60.0), through(server)() as tunnel:
            tunnel.sendall(b"hi")
            assert tunnel.recv(2) == b"hi"


def test_tls_within_tls_is_refused_before_anybody_is_called(trusting: ssl.SSLContext) -> None:
    with peer(silent) as server, nothing_left():
        proxy = ProxyAddress("127.0.0.1", server.port, tls=trusting)
        with pytest.raises(holdfast.UsageError, match="asynchronous dial"):
            dial_blocking("orders.test", 443, tls=trusting, proxy=proxy, resolver=BOOK)
