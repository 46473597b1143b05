"""The fault proxy does to connections what it is told, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from holdfast.domain.errors import UsageError
from holdfast.testing.proxy import FaultProxy, Then

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(30)]

SOON = 0.1
"""Seconds in which what is held back must not come."""
LONG = 10.0
"""Seconds in which what is on its way must have come, however busy the machine is."""


class Echo:
    """Sends back what comes, each connection in a thread, and counts."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self.listener.getsockname()[1]
        self.got = bytearray()
        self.ends: list[str] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.socks: list[socket.socket] = []
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.socks.append(sock)
            self.threads.append(threading.Thread(target=self._serve, args=[sock]))
            self.threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            while data := sock.recv(65_536):
                self.got += data
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            self.ends.append("end")
        except OSError as exc:
            self.ends.append(errno.errorcode[exc.errno or 0])

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.socks:
            shut(sock)
        for thread in self.threads:
            thread.join(LONG)
        for sock in self.socks:
            sock.close()


def shut(sock: socket.socket) -> None:
    with suppress(OSError):  # it is gone already
        sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as made:
        yield made


@contextmanager
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG) as sock:
        yield sock


def ask(sock: socket.socket, text: bytes = b"hello") -> bytes:
    sock.sendall(text)
    return exactly(sock, len(text))


def exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (part := sock.recv(size - len(found))):
        found += part
    return found


def silent(sock: socket.socket, seconds: float = SOON) -> bool:
    sock.settimeout(seconds)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(LONG)
    return False


def until(check: object, what: str = "") -> None:
    limit = time.monotonic() + LONG
    while not check():  # type: ignore[operator]
        assert time.monotonic() < limit, what
        time.sleep(0.005)


def test_nothing_happens_to_bytes_that_nobody_spoils(proxy: FaultProxy, echo: Echo) -> None:
    data = random.Random(1).randbytes(3_000_000)
    with client(proxy) as sock:
        sender = threading.Thread(target=sock.sendall, args=[data])
        sender.start()
        assert exactly(sock, len(data)) == data
        sender.join()
        (one,) = proxy.connections
        assert (one.to_server, one.to_client) == (len(data), len(data))
        assert one.client == "{}:{}".format(*sock.getsockname())
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    until(lambda: not proxy.connections)
    assert echo.ends == ["end"]
    assert proxy.opened == 1


def test_latency_and_its_jitter_keep_the_order(echo: Echo) -> None:
    with (
        FaultProxy("127.0.0.1", echo.port, chance=random.Random(3).random) as proxy,
        client(proxy) as sock,
    ):
        proxy.to_client.delay(0.2, jitter=0.1)
        begun = time.monotonic()
        for index in range(20):
            sock.sendall(bytes([index]))
            time.sleep(0.003)
        assert exactly(sock, 20) == bytes(range(20))
        assert time.monotonic() - begun >= 0.1
        proxy.to_client.delay(0.0)
        assert ask(sock) == b"hello"


def test_a_stall_holds_everything_back_and_loses_nothing(proxy: FaultProxy, echo: Echo) -> None:
    with client(proxy) as sock:
        ask(sock)
        proxy.to_client.stall()
        sock.sendall(b"question")
        assert silent(sock)
        assert bytes(echo.got) == b"helloquestion"  # the other direction is as it was
        proxy.to_client.resume()
        assert exactly(sock, 8) == b"question"
        proxy.to_server.stall()
        sock.sendall(b"again")
        assert silent(sock)
        assert len(echo.got) == 13
        proxy.heal()
        assert exactly(sock, 5) == b"again"


def test_a_stall_is_felt_by_the_one_who_sends(proxy: FaultProxy, echo: Echo) -> None:
    proxy.to_server.stall()
    with client(proxy) as sock:
        sock.settimeout(SOON)
        with pytest.raises(TimeoutError):
            sock.sendall(bytes(100_000_000))
    assert not echo.got


def test_a_trickle_has_its_rate(proxy: FaultProxy) -> None:
    proxy.to_client.trickle(100)
    with client(proxy) as sock:
        begun = time.monotonic()
        assert ask(sock, bytes(40)) == bytes(40)
        assert 0.3 < time.monotonic() - begun < LONG
        proxy.to_client.trickle(1_000_000)
        assert ask(sock, bytes(4000)) == bytes(4000)


def test_a_half_close_leaves_the_other_direction(proxy: FaultProxy, echo: Echo) -> None:
    with client(proxy) as sock:
        ask(sock)
        proxy.to_client.cut()
        assert sock.recv(1) == b""
        sock.sendall(b"still there")
        until(lambda: echo.got == b"hellostill there")
        assert len(proxy.connections) == 1
        sock.shutdown(socket.SHUT_WR)
        until(lambda: not proxy.connections)
    until(lambda: echo.ends == ["end"])


def test_cut_ends_and_reset_breaks_both_sides(proxy: FaultProxy, echo: Echo) -> None:
    with client(proxy) as sock:
        ask(sock)
        proxy.cut()
        assert sock.recv(1) == b""
        until(lambda: echo.ends == ["end"])
    with client(proxy) as sock:
        ask(sock)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        until(lambda: echo.ends == ["end", "ECONNRESET"])
    assert proxy.connections == ()
    with client(proxy) as sock:
        assert ask(sock) == b"hello"


@pytest.mark.parametrize("then", list(Then))
def test_a_limit_counts_bytes_to_the_last(proxy: FaultProxy, then: Then) -> None:
    proxy.to_client.limit(7, then)
    with client(proxy) as sock:
        assert ask(sock) == b"hello"
        sock.sendall(b"hello")
        if then is Then.RESET:
            # A reset may overtake the bytes before it, in the receiver's kernel.
            with pytest.raises(ConnectionResetError):
                exactly(sock, 8)
            return
        assert exactly(sock, 2) == b"he"
        if then is Then.CUT:
            assert sock.recv(1) == b""
        else:
            assert silent(sock)
            proxy.to_client.heal()
            assert exactly(sock, 3) == b"llo"
            proxy.to_client.limit(7)
    with client(proxy) as sock:  # each connection has its own count
        assert ask(sock) == b"hello"


def test_a_limit_that_is_passed_already_acts_at_once(proxy: FaultProxy) -> None:
    with client(proxy) as sock:
        ask(sock)
        proxy.to_client.limit(3)
        assert sock.recv(1) == b""


def test_a_reset_by_either_side_reaches_the_other(proxy: FaultProxy, echo: Echo) -> None:
    with client(proxy) as sock:
        ask(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: echo.ends == ["ECONNRESET"])


def test_refused_and_welcome_again(proxy: FaultProxy) -> None:
    with client(proxy) as sock:
        ask(sock)
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG)
        assert ask(sock) == b"hello"  # what is open stays
    proxy.accept()
    with client(proxy) as sock:
        assert ask(sock) == b"hello"


def test_a_black_hole_answers_nobody(proxy: FaultProxy) -> None:
    with client(proxy) as sock:
        ask(sock)
        proxy.blackhole()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON)
        assert ask(sock) == b"hello"
    proxy.heal()
    with client(proxy) as sock:
        assert ask(sock) == b"hello"
    assert proxy.opened == 2  # what fills the queue is nobody's connection


def test_who_waits_at_the_black_hole_comes_through_later(proxy: FaultProxy) -> None:
    proxy.blackhole()
    found: list[bytes] = []

    def connect() -> None:
        with client(proxy) as sock:
            found.append(ask(sock))

    waiting = threading.Thread(target=connect)
    waiting.start()
    time.sleep(0.05)
    proxy.accept()
    waiting.join(LONG)
    assert found == [b"hello"]


def test_a_server_that_is_not_there_breaks_the_connection(echo: Echo) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with FaultProxy("127.0.0.1", port) as proxy:
        # It may be broken before the client's own call has returned.
        with pytest.raises(ConnectionResetError), client(proxy) as sock:
            sock.recv(1)
        assert proxy.opened == 1
        assert proxy.connections == ()


def test_bad_orders_are_refused(echo: Echo) -> None:
    proxy = FaultProxy("127.0.0.1", echo.port)
    with pytest.raises(UsageError, match="with"):
        proxy.reset()
    with proxy, pytest.raises(ValueError, match="jitter"):
        proxy.to_client.delay(0.1, jitter=0.2)
    with pytest.raises(ValueError, match="stall"):
        proxy.to_client.trickle(0)
    with pytest.raises(ValueError, match="limit"):
        proxy.to_client.limit(-1)
    with pytest.raises(ValueError, match="explode"):
        proxy.to_client.limit(1, "explode")
    with pytest.raises(UsageError, match="each"), proxy:
        pass


@pytest.mark.real_time("asyncio", "uvloop")
async def test_it_is_ordered_from_a_coroutine(echo: Echo) -> None:
    import asyncio

    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        proxy.to_client.stall()
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await reader.readexactly(1)
        proxy.to_client.resume()
        assert await reader.readexactly(5) == b"hello"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        with pytest.raises(ConnectionResetError):
            await writer.wait_closed()


@pytest.mark.parametrize("door", ["accept", "refuse", "blackhole"])
def test_nothing_is_left_of_it(echo: Echo, door: str) -> None:
    def counted() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), sum(
            "fault" in t.name for t in threading.enumerate()
        )

    before = counted()
    with FaultProxy("127.0.0.1", echo.port) as proxy:
        socks = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(5)]
        for sock in socks:
            ask(sock)
        proxy.to_client.stall()
        getattr(proxy, door)()
    for sock in socks:
        assert sock.recv(1) == b""
        sock.close()
    until(lambda: len(echo.ends) == 5)
    for sock in echo.socks:
        sock.close()
    assert all(now <= then for now, then in zip(counted(), before, strict=True))
