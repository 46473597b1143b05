"""Blocking sockets whose every wait is bounded."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
import trustme

import holdfast
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.blocking import BoundSocket, bound_of, within_limit
from tests.runtime.peering import ENDED, Peer, deaf, descriptors, drip, echo, peer, silent

MEGABYTES = b"z" * 64 * 2**20


def connected(server: Peer) -> BoundSocket:
    return BoundSocket(socket.create_connection(("127.0.0.1", server.port)))


def ends(call: Callable[[], object], limit: float = 0.2) -> None:
    began = monotonic()
    with pytest.raises(TimeoutError) as caught:
        call()
    assert caught.value.errno is None
    assert limit - 0.01 <= monotonic() - began < ENDED


def test_a_trickle_ends_with_the_limit_and_not_with_the_next_byte() -> None:
    trail = Trail("peer", 0.0)
    with peer(drip) as server, connected(server) as sock:
        sock.settimeout(1.0)  # never reached between two bytes

        def read() -> None:
            with within_limit(monotonic() + 0.2, trail):
                while sock.recv(1):
                    pass

        ends(read)
    assert trail.received > 0


def test_each_kind_of_wait_ends() -> None:
    with peer(silent) as server, connected(server) as sock:
        buffer = bytearray(8)

        def read_file(buffering: int) -> None:
            with sock.makefile("rb", buffering) as file:
                file.read(1)

        calls: list[Callable[[], object]] = [
            lambda: sock.recv(1),
            lambda: sock.recv_into(buffer),
            lambda: sock.recv_into(memoryview(buffer), 4),
            lambda: read_file(-1),
            lambda: read_file(0),
        ]
        for call in calls:
            with within_limit(monotonic() + 0.1):
                ends(call, 0.1)
        sock.sendall(b"still of use")


def test_nothing_is_lost_by_a_read_that_ended() -> None:
    with peer(echo) as server, connected(server) as sock:
        with within_limit(monotonic() + 0.05):
            ends(lambda: sock.recv(5), 0.05)
        sock.sendall(b"hello")
        got = b""
        while len(got) < 5:
            got += sock.recv(2)
        assert got == b"hello"


def test_a_limit_that_is_spent_lets_nothing_wait() -> None:
    with peer(echo) as server, connected(server) as sock:
        with within_limit(monotonic() - 1.0):
            assert 0 < sock.gettimeout() < 0.01  # zero would be: it does not block
            for call in (lambda: sock.recv(1), lambda: sock.send(b"x"), lambda: sock.sendall(b"x")):
                with pytest.raises(TimeoutError):
                    call()
        assert sock.gettimeout() is None


def test_the_time_out_of_the_socket_counts_when_it_is_shorter() -> None:
    with peer(silent) as server, connected(server) as sock:
        sock.settimeout(0.1)
        with within_limit(monotonic() + 60):
            assert sock.gettimeout() == 0.1
            ends(lambda: sock.recv(1), 0.1)
        sock.settimeout(60)
        with within_limit(monotonic() + 0.1):
            left = sock.gettimeout()
            assert left is not None
            assert left <= 0.1
            ends(lambda: sock.recv(1), 0.1)


def test_a_non_blocking_socket_stays_one() -> None:
    with peer(silent) as server, connected(server) as sock:
        sock.setblocking(False)
        with within_limit(monotonic() + 60), pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.setblocking(True)
        assert sock.gettimeout() is None


def test_limits_only_shrink_and_are_given_back() -> None:
    outer = Trail("outer", 0.0)
    assert bound_of().at == NEVER
    with within_limit(10.0, outer):
        with within_limit(20.0):
            assert bound_of().at == 10.0
            assert bound_of().trail is outer
        with suppress(KeyError), within_limit(5.0, Trail("inner", 0.0)):
            assert bound_of().at == 5.0
            raise KeyError
        assert (bound_of().at, bound_of().trail) == (10.0, outer)
    assert (bound_of().at, bound_of().trail) == (NEVER, None)


def test_a_limit_is_that_of_its_thread() -> None:
    seen: list[float] = []
    with within_limit(1.0):
        thread = threading.Thread(target=lambda: seen.append(bound_of().at))
        thread.start()
        thread.join()
    assert seen == [NEVER]


def test_a_socket_in_use_keeps_its_call_in_any_thread() -> None:
    trail = Trail("peer", 0.0)
    caught: list[Exception] = []
    with peer(drip) as server, connected(server) as sock:
        sock.use(monotonic() + 0.2, trail)

        def read() -> None:
            try:
                while sock.recv(1):
                    pass
            except TimeoutError as exc:
                caught.append(exc)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(ENDED)
        assert caught
        sock.use(NEVER)
        assert sock.recv(1) == b"x"
    assert trail.received > 0


def test_a_scoped_socket_follows_the_scope_of_each_wait() -> None:
    with peer(silent) as server:
        inner = socket.create_connection(("127.0.0.1", server.port))
        with BoundSocket(inner, scoped=True) as sock:
            assert sock.gettimeout() is None
            for budget in (0.2, 0.1):
                began = monotonic()
                with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(budget):
                    sock.recv(1)
                assert budget - 0.01 <= monotonic() - began < ENDED
            sock.sendall(b"of use")


# -- sending ---------------------------------------------------------------------------------------


def test_an_upload_that_nobody_takes_ends_and_is_dropped() -> None:
    trail = Trail("peer", 0.0)
    before = descriptors()
    with peer(deaf) as server:
        sock = connected(server)
        with within_limit(monotonic() + 0.2, trail):
            ends(lambda: sock.sendall(MEGABYTES))
        assert 0 < trail.sent < len(MEGABYTES)
        sock.close()
        assert sock.fileno() == -1
        assert server.ended()
    # Megabytes that the kernel had taken are gone too: a plain close would go on to send them.
    assert server.seen == ["reset"]
    assert descriptors() <= before


def test_what_was_sent_in_time_arrives_before_the_end() -> None:
    with peer(deaf) as server:
        sock = connected(server)
        sock.sendall(b"all of it")
        sock.close()
        assert server.ended()
    assert server.seen == ["eof"]


def test_a_slow_reader_gets_everything() -> None:
    data = bytes(range(256)) * 8192
    got: list[bytes] = []

    def slow(me: Peer, sock: socket.socket) -> None:
        while part := sock.recv(65536):
            got.append(part)
            me.over.wait(0.001)
        me.seen.append("eof")

    with peer(slow) as server:
        sock = connected(server)
        with within_limit(monotonic() + 30):
            sock.sendall(memoryview(data))
        sock.close()
        assert server.ended()
    assert b"".join(got) == data


def test_items_of_more_than_a_byte_are_sent_whole() -> None:
    from array import array

    numbers = array("d", range(100_000))
    with peer(echo) as server, connected(server) as sock:
        writer = threading.Thread(target=sock.sendall, args=[numbers])
        writer.start()
        with sock.makefile("rb") as file:
            got = file.read(len(numbers) * numbers.itemsize)
        writer.join(ENDED)
    assert got == numbers.tobytes()


# -- the end ---------------------------------------------------------------------------------------


def test_a_file_keeps_it_open() -> None:
    with peer(echo) as server:
        sock = connected(server)
        sock.sendall(b"line\nmore\n")
        file = sock.makefile("rb")
        sock.close()
        assert sock.fileno() >= 0
        assert file.readline() == b"line\n"
        file.close()
        assert sock.fileno() == -1


def test_a_file_can_write() -> None:
    with peer(echo) as server, connected(server) as sock:
        with sock.makefile("wb") as file:
            file.write(b"line\n")
        assert sock.recv(10) == b"line\n"
        with pytest.raises(ValueError, match="binary"):
            sock.makefile("r")


def test_aborting_twice_and_after_closing_does_no_harm() -> None:
    with peer(deaf) as server:
        sock = connected(server)
        sock.abort()
        sock.abort()
        sock.close()
        assert server.ended()
    assert server.seen == ["reset"]


def test_a_detached_socket_belongs_to_somebody_else() -> None:
    with peer(echo) as server:
        sock = connected(server)
        with socket.socket(fileno=sock.detach()) as taken:
            sock.close()
            taken.sendall(b"hi")
            assert taken.recv(2) == b"hi"


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="authority")
def an_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(name="client_tls")
def a_client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(name="server_tls")
def a_server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(name="secure")
def a_tls_peer(server_tls: ssl.SSLContext) -> Iterator[Peer]:
    def serve(me: Peer, sock: socket.socket) -> None:
        with server_tls.wrap_socket(sock, server_side=True) as tls:
            what = tls.recv(4)
            {b"drip": drip, b"deaf": deaf, b"echo": echo}[what](me, tls)

    with peer(serve) as server:
        yield server


def test_tls_is_bounded_alike(secure: Peer, client_tls: ssl.SSLContext) -> None:
    plain = socket.create_connection(("127.0.0.1", secure.port))
    inner = client_tls.wrap_socket(
        plain, server_hostname="127.0.0.1", do_handshake_on_connect=False
    )
    with BoundSocket(inner) as sock:
        assert sock.is_tls
        with within_limit(monotonic() + 30):
            sock.do_handshake()
        sock.sendall(b"drip")

        def read() -> None:
            with within_limit(monotonic() + 0.2):
                while sock.recv(1):
                    pass

        ends(read)


def test_tls_sends_all_or_ends(secure: Peer, client_tls: ssl.SSLContext) -> None:
    for what, ends_in_time in ((b"echo", True), (b"deaf", False)):
        plain = socket.create_connection(("127.0.0.1", secure.port))
        sock = BoundSocket(client_tls.wrap_socket(plain, server_hostname="127.0.0.1"))
        sock.sendall(what)
        if ends_in_time:
            sock.sendall(b"a" * 10_000)
            with sock.makefile("rb") as file:
                assert file.read(10_000) == b"a" * 10_000
        else:
            with within_limit(monotonic() + 0.2):
                ends(partial(sock.sendall, MEGABYTES))
        sock.close()
        assert sock.inner.fileno() == -1


@pytest.mark.parametrize("serve", [silent, drip], ids=["silent", "trickle"])
def test_a_handshake_ends_with_the_limit(
    serve: Callable[[Peer, socket.socket], None], client_tls: ssl.SSLContext
) -> None:
    def trickle(me: Peer, sock: socket.socket) -> None:
        # The head of a record of 16 KiB, whose bytes then come one by one.
        sock.sendall(b"\x16\x03\x03\x40\x00")
        serve(me, sock)

    with peer(silent if serve is silent else trickle) as server:
        plain = socket.create_connection(("127.0.0.1", server.port))
        inner = client_tls.wrap_socket(
            plain, server_hostname="127.0.0.1", do_handshake_on_connect=False
        )
        with BoundSocket(inner) as sock, within_limit(monotonic() + 0.2):
            ends(sock.do_handshake)


def test_saying_goodbye_ends_with_the_limit(client_tls: ssl.SSLContext, secure: Peer) -> None:
    plain = socket.create_connection(("127.0.0.1", secure.port))
    with BoundSocket(client_tls.wrap_socket(plain, server_hostname="127.0.0.1")) as sock:
        sock.sendall(b"deaf")
        with within_limit(monotonic() + 0.2):
            ends(sock.unwrap)
