"""The way into an accept queue, barred."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from holdfast.runtime import accept
from holdfast.runtime.accept import bar, queued, taken_in

pytestmark = pytest.mark.system


def listener(path: Path | None = None) -> socket.socket:
    sock = socket.socket() if path is None else socket.socket(socket.AF_UNIX)
    sock.bind(("127.0.0.1", 0) if path is None else str(path))
    sock.listen(16)
    return sock


def verdict(flags: int) -> int:
    """What the filter returns for a TCP header with these flags: bytes to keep."""
    program = list(struct.iter_unpack("HBBI", accept._NO_NEW))
    header = bytes(13) + bytes([flags]) + bytes(6)
    value, at = 0, 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        match code:
            case 0x30:
                value = header[k]
            case 0x54:
                value &= k
            case 0x15:
                at += if_true if value == k else if_false
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"{code:#x} is no instruction that is used here")


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        (0x02, False),  # SYN
        (0xC2, False),  # SYN of a client that speaks ECN
        (0x10, True),  # the ACK that ends a handshake
        (0x18, True),  # the same with the request in it
        (0x04, True),  # RST
        (0x11, True),  # FIN with ACK
    ],
)
def test_only_what_asks_for_a_connection_is_dropped(flags: int, passes: bool) -> None:
    assert bool(verdict(flags)) is passes


def test_nobody_new_gets_in_and_who_is_in_stays_in() -> None:
    with listener() as sock:
        inside = [socket.create_connection(sock.getsockname()) for _ in range(5)]
        assert queued(sock) == 5
        assert bar(sock)
        with socket.socket() as late:
            late.setblocking(False)
            with pytest.raises(BlockingIOError):
                late.connect(sock.getsockname())
            inside[0].sendall(b"request")
            assert queued(sock) == 5
        connection, _ = sock.accept()
        assert connection.recv(64) == b"request"
        connection.sendall(b"answer")
        assert inside[0].recv(64) == b"answer"
        for each in (*inside, connection):
            each.close()


def test_at_a_unix_socket_the_late_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listener(path) as sock, socket.socket(socket.AF_UNIX) as early:
        early.connect(str(path))
        assert bar(sock)
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(str(path))
        sock.accept()[0].close()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_it_is_waited_until_what_is_queued_was_accepted() -> None:
    with listener() as sock:
        sock.setblocking(False)
        inside = [socket.create_connection(sock.getsockname()) for _ in range(7)]

        async def take() -> list[socket.socket]:
            await asyncio.sleep(0.05)
            return [sock.accept()[0] for _ in inside]

        taking = asyncio.ensure_future(take())
        assert await taken_in(sock) == 7
        for each in (*inside, *await taking):
            each.close()


async def test_a_server_that_does_not_accept_is_given_up() -> None:
    with listener() as sock, socket.create_connection(sock.getsockname()):
        assert await taken_in(sock, longest=1.0) == 0
        assert queued(sock) == 1


async def test_where_others_listen_on_the_port_it_is_quick() -> None:
    took: list[float] = []
    for sisters in (False, True):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, sisters)
            sock.bind(("127.0.0.1", 0))
            sock.listen(16)
            before = asyncio.get_running_loop().time()
            await taken_in(sock)
            took.append(asyncio.get_running_loop().time() - before)
    assert took[1] < took[0]
