"""Name servers on loopback: one that does as it is told, and a real one, knot."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.runtime.naming import LONG

KNOTD: Final = shutil.which("knotd") or shutil.which("knotd", path="/usr/sbin")
Reply = Callable[[bytes, int], "bytes | list[bytes] | None"]
"""Makes of a query, and of how many came before it, what is sent back."""


class Peer:
    """A name server that does as it is told, over UDP and TCP on one port."""

    def __init__(self, udp: Reply, tcp: Reply) -> None:
        self.queries: list[tuple[str, bytes]] = []
        self._replies = {"udp": udp, "tcp": tcp}
        self._udp, self._tcp = _both()
        self.port = self._udp.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=t) for t in (self._hear_udp, self._hear_tcp)]
        for thread in self._threads:
            thread.start()

    def _reply(self, how: str, query: bytes) -> list[bytes]:
        number = sum(1 for kind, _ in self.queries if kind == how)
        self.queries.append((how, query))
        said = self._replies[how](query, number)
        return [] if said is None else [said] if isinstance(said, bytes) else said

    def _hear_udp(self) -> None:
        while True:
            query, source = self._udp.recvfrom(4096)
            if not query:
                return
            for message in self._reply("udp", query):
                self._udp.sendto(message, source)

    def _hear_tcp(self) -> None:
        while True:
            connection, _ = self._tcp.accept()
            with connection:
                head = connection.recv(2)
                if not head:
                    return
                query = connection.recv(int.from_bytes(head))
                for message in self._reply("tcp", query):
                    # In two pieces, as networks do.
                    connection.sendall(len(message).to_bytes(2) + message[:5])
                    time.sleep(0.005)
                    connection.sendall(message[5:])

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bell:
            bell.sendto(b"", ("127.0.0.1", self.port))
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self._threads:
            thread.join(LONG)
        self._udp.close()
        self._tcp.close()


def _both() -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on the same port."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError:
            udp.close()  # taken, by somebody else's TCP; there are others


def nothing(query: bytes, number: int) -> None:
    """Never answers."""


@contextmanager
def name_server(udp: Reply = nothing, tcp: Reply = nothing) -> Iterator[Peer]:
    peer = Peer(udp, tcp)
    try:
        yield peer
    finally:
        peer.close()


def message(
    query: bytes, address: str = "", *, rcode: int = 0, ttl: int = 60, cut: bool = False
) -> bytes:
    """An answer, by hand: the head of RFC 1035 4.1.1, the question again, one A record."""
    flags = 0x8180 | rcode | (0x0200 if cut else 0)
    end = query.index(b"\0", 12) + 5
    head = query[:2] + struct.pack("!5H", flags, 1, 1 if address else 0, 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, ttl, 4) + socket.inet_aton(address or "0")
    return head + query[12:end] + (record if address else b"")


# -- knot ------------------------------------------------------------------------------------------

_CONF: Final = """
server:
    rundir: "{path}"
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{path}"
mod-stats:
  - id: default
    query-type: on
    request-protocol: on
template:
  - id: default
    storage: "{path}"
    global-module: mod-stats/default
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
zone:
{zones}
"""
_HEAD: Final = (
    "$ORIGIN {zone}.\n$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 {negative}\n@ NS ns\n"
)


class Knot:
    """A real name server. A zone without records is one that it cannot load."""

    def __init__(self, path: Path, zones: Mapping[str, str], negative: int) -> None:
        self._path = path
        for zone, records in zones.items():
            if records:
                text = _HEAD.format(zone=zone, negative=negative) + "ns A 127.0.0.1\n" + records
                (path / f"{zone}.zone").write_text(text)
        listed = "\n".join(f"  - domain: {z}\n    file: {z}.zone" for z in zones)
        for _ in range(20):  # the port that was free may be taken meanwhile
            udp, tcp = _both()
            self.port = udp.getsockname()[1]
            udp.close()
            tcp.close()
            (path / "knot.conf").write_text(_CONF.format(path=path, port=self.port, zones=listed))
            self.process = self._start()
            if self._answers():
                return
            self.stop()
        raise RuntimeError((path / "log").read_text())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def queries(self, of: str) -> int:
        """How many there were, by `query-type[A]` or `request-protocol[tcp4]`."""
        for line in self._control("stats").splitlines():
            if line.startswith(f"mod-stats.{of} "):
                return int(line.rpartition("=")[2])
        return 0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def again(self) -> None:
        """Start once more, on the same port."""
        self.process = self._start()
        assert self._answers()

    def _start(self) -> subprocess.Popen[bytes]:
        assert KNOTD is not None
        command = [KNOTD, "-c", str(self._path / "knot.conf")]
        with (self._path / "log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _answers(self) -> bool:
        until = time.monotonic() + LONG
        while self.process.poll() is None and time.monotonic() < until:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.settimeout(0.05)
                probe.connect(("127.0.0.1", self.port))
                try:
                    probe.send(b"\1\2\0\0\0\1\0\0\0\0\0\0\0\0\6\0\1")  # SOA of the root
                    probe.recv(512)
                    return True
                except OSError:
                    time.sleep(0.01)
        return False

    def _control(self, *words: str) -> str:
        command = ["knotc", "-s", str(self._path / "knot.sock"), *words]
        path = f"{os.environ['PATH']}:/usr/sbin"
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
        ).stdout


@contextmanager
def knot(path: Path, zones: Mapping[str, str], negative: int = 7) -> Iterator[Knot]:
    if KNOTD is None:
        pytest.skip("knotd is not installed: sudo sh tools/packages.sh")
    server = Knot(path, zones, negative)
    try:
        yield server
    finally:
        server.stop()
