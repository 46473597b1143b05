"""Peers for blocking sockets: threads that answer badly, or not at all."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from holdfast.domain.discovery.names import Answer
from holdfast.domain.instant import NEVER
from holdfast.ports.lookup import Done

PACE = 0.02
"""Seconds between two bytes of a peer that trickles."""
ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""


class Peer:
    """A listener whose connections are each served by a thread.

    Attributes:
        port: on 127.0.0.1.
        over: set when the test is over.
        seen: how connections ended for a server that waits for their end: `eof` or `reset`.
    """

    def __init__(self, serve: Callable[[Peer, socket.socket], None], host: str, port: int) -> None:
        self.over = threading.Event()
        self.seen: list[str] = []
        self._serve = serve
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            sock.settimeout(30)
            self._open.add(sock)
            self._threads.append(threading.Thread(target=self._run, args=[sock]))
            self._threads[-1].start()

    def _run(self, sock: socket.socket) -> None:
        try:
            with sock:
                self._serve(self, sock)
        except OSError:
            return  # the client has gone, or the test is over
        finally:
            self._open.discard(sock)

    def ended(self) -> bool:
        """Whether a connection comes to its end; waits for it."""
        for _ in range(1000):
            if self.seen:
                return True
            time.sleep(0.005)
        return False

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in tuple(self._open):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its thread was quicker
        for thread in self._threads:
            thread.join(10)


@contextmanager
def peer(
    serve: Callable[[Peer, socket.socket], None], host: str = "127.0.0.1", port: int = 0
) -> Iterator[Peer]:
    me = Peer(serve, host, port)
    try:
        yield me
    finally:
        me.close()


def echo(me: Peer, sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def silent(me: Peer, sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def drip(me: Peer, sock: socket.socket) -> None:
    while not me.over.wait(PACE):
        sock.sendall(b"x")


def deaf(me: Peer, sock: socket.socket) -> None:
    """Reads nothing until the client has gone, then says how it went."""
    me.over.wait(0.4)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        me.seen.append("reset")
    else:
        me.seen.append("eof")


@contextmanager
def full_queue(host: str = "127.0.0.1") -> Iterator[int]:
    """A port whose accept queue is full: what knocks is dropped, as by a firewall."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen(0)
        knocks = [socket.socket() for _ in range(3)]
        for knock in knocks:
            knock.setblocking(False)
            knock.connect_ex(listener.getsockname())
        time.sleep(0.05)
        try:
            yield listener.getsockname()[1]
        finally:
            for knock in knocks:
                knock.close()


class Book:
    """Answers from a book, and never for a name that is not in it."""

    kinds = ("ADDRESS",)
    asks = "192.0.2.53"

    def __init__(self, names: Mapping[str, tuple[str, ...]]) -> None:
        self._names = names

    def start(self, name: str, kind: str, done: Done) -> Callable[[], object]:
        if name in self._names:
            threading.Thread(target=done, args=[Answer(self._names[name], NEVER)]).start()
        return lambda: None


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))
