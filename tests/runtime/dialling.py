"""Whom the tests of the dial call: names from a book, and peers that answer badly."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trustme

from holdfast.domain.phases import Trail
from holdfast.runtime.net.resolver import Address
from tests.runtime.peering import PACE, Peer

HELLO = b"hello"


def loops(test: Any) -> Any:
    """Run `test` on both loops. The fixture has to be asked for, or pytest drops it again, and with
    it the name of the loop: then all of it runs on asyncio, whatever the name of the test says."""
    return pytest.mark.real_time("asyncio", "uvloop")(
        pytest.mark.usefixtures("holdfast_loop")(test)
    )


class Names:
    """Resolves from a book. A name that is not in it is never answered.

    Attributes:
        asked: the names that were asked for.
    """

    asks = "192.0.2.53"

    def __init__(self, **book: tuple[str, ...] | OSError) -> None:
        self._book = book
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int, **_: object) -> tuple[Address, ...]:
        self.asked.append(host)
        found = (host,) if host[:1].isdigit() else self._book.get(host)
        if found is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(found, OSError):
            raise found
        return tuple(addresses(port, *found))


def addresses(port: int, *hosts: str) -> list[Address]:
    return [
        Address(socket.AF_INET6, (host, port, 0, 0))
        if ":" in host
        else Address(socket.AF_INET, (host, port))
        for host in hosts
    ]


class Observer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Trail, BaseException | None]] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.calls.append((trail, error))


class Sockets:
    """Every socket that was made for a connection while this was watching."""

    def __init__(self, monkeypatch: Any) -> None:
        self.made: list[socket.socket] = []
        plain = socket.socket.connect_ex

        def noted(sock: socket.socket, address: Any) -> int:
            if sock.proto == socket.IPPROTO_TCP:  # those of `dropping` have none
                self.made.append(sock)
            return plain(sock, address)

        monkeypatch.setattr(socket.socket, "connect_ex", noted)

    def open(self) -> list[socket.socket]:
        return [sock for sock in self.made if sock.fileno() >= 0]


@contextmanager
def dropping(*hosts: str) -> Iterator[int]:
    """A port on each of the hosts whose accept queue is full: what knocks is dropped."""
    held: list[socket.socket] = []
    port = 0
    try:
        for host in hosts:
            listener = socket.socket()
            held.append(listener)
            listener.bind((host, port))
            listener.listen(0)
            port = listener.getsockname()[1]
            for _ in range(3):
                knock = socket.socket()
                held.append(knock)
                knock.setblocking(False)
                knock.connect_ex((host, port))
        yield port
    finally:
        for sock in held:
            sock.close()


@contextmanager
def refusing() -> Iterator[int]:
    """A port that nobody listens at, and that nobody else is given meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server that is `orders.test` and 127.0.0.1, and for a client that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("orders.test", "127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


def tls_echo(me: Peer, sock: socket.socket) -> None:
    with contexts()[0].wrap_socket(sock, server_side=True) as wrapped:
        while data := wrapped.recv(65536):
            wrapped.sendall(data)


def tls_trickle(me: Peer, sock: socket.socket) -> None:
    """Its first flight comes byte by byte."""
    came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
    machine = contexts()[0].wrap_bio(came, goes, server_side=True)
    while not goes.pending:
        came.write(sock.recv(65536))
        try:
            machine.do_handshake()
        except ssl.SSLWantReadError:
            continue
    for byte in goes.read():
        sock.sendall(bytes([byte]))
        if me.over.wait(PACE):
            return


def answering(*parts: bytes, end: bool = False) -> Callable[[Peer, socket.socket], None]:
    """A proxy that answers so, and is silent then, or closes."""

    def serve(me: Peer, sock: socket.socket) -> None:
        _head(sock)
        for part in parts:
            sock.sendall(part)
        if not end:
            while sock.recv(65536):
                pass

    return serve


def endless(part: bytes) -> Callable[[Peer, socket.socket], None]:
    """A proxy whose answer never ends."""

    def serve(me: Peer, sock: socket.socket) -> None:
        _head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n")
        while not me.over.is_set():
            sock.sendall(part * 64)

    return serve


def tunnel(*, tls: bool = False, interim: bytes = b"") -> Callable[[Peer, socket.socket], None]:
    """A proxy that works; `seen` gets the heads of what it was asked."""

    def serve(me: Peer, sock: socket.socket) -> None:
        near = contexts()[0].wrap_socket(sock, server_side=True) if tls else sock
        with near:
            head = _head(near)
            me.seen.append(head.decode())
            host, port = head.split()[1].decode().rsplit(":", 1)
            with socket.create_connection((host, int(port)), 5) as far:
                near.sendall(interim + b"HTTP/1.1 200 Connection established\r\n\r\n")
                _pump(near, far)

    return serve


def _head(sock: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(65536)
        if not data:
            raise ConnectionResetError("the client has gone")
        head += data
    return head


def _pump(near: socket.socket, far: socket.socket) -> None:
    """Bytes in turns, question and answer, as the tests speak."""
    near.settimeout(PACE)
    far.settimeout(PACE)
    while True:
        for this, that in ((near, far), (far, near)):
            try:
                data = this.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            that.sendall(data)


def descriptors() -> int:
    """How many sockets and files this process has open."""
    return len(os.listdir("/proc/self/fd"))
