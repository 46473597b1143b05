"""The bad servers: `python -m bench.net.hostile [namespace]`.

Says on standard output where they are, one JSON object in one line, and ends when its standard
input does. In the namespace, port 8101 is dropped by the firewall and the server for names is where
`ground` says; elsewhere full accept queues stand in for the former, and nothing for the latter.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import trustme

from bench.net.bad import HOPS, PACE

__all__ = ["DROPPED", "NAMES", "THREE"]

DROPPED: Final = 8101
"""The port that the firewall drops."""
NAMES: Final = ("127.0.0.1", 53)
THREE: Final = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
_PAUSE: Final = 0.6

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
_FINE: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def main(namespace: bool) -> None:
    held: list[socket.socket] = []  # what has to stay open
    places = {
        "http": await serve(http),
        "mute": await serve(mute),
        "slowly": await serve(slowly(server_context())),
        "full": full(["127.0.0.1"], held),
    }
    if namespace:
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind(NAMES)
        held.append(names)
        places |= {"dropped": DROPPED, "three": DROPPED}
    else:
        places |= {"dropped": full(["127.0.0.1"], held), "three": full(list(THREE), held)}
    print(json.dumps(places), flush=True)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, gone.set)
    await gone.wait()
    os._exit(0)  # nobody waits for an orderly end of all that was disorderly


async def serve(peer: Callable[[Reader, Writer], Awaitable[None]]) -> int:
    async def guarded(reader: Reader, writer: Writer) -> None:
        # A peer that waits for nothing and reads nothing is referred to by nobody else.
        _writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):  # the client has had enough
            await peer(reader, writer)
        _writers.discard(writer)
        writer.transport.abort()

    listener = socket.socket()
    # Small, so that an upload is stuck soon.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(guarded, sock=listener, limit=4096, backlog=1024)
    _servers.append(server)
    return int(listener.getsockname()[1])


_servers: list[asyncio.Server] = []
_writers: set[Writer] = set()


def full(hosts: list[str], held: list[socket.socket]) -> int:
    """A port whose accept queue is full on all of these addresses: the kernel drops what knocks."""
    port = 0
    for host in hosts:
        listener = socket.socket()
        listener.bind((host, port))
        listener.listen(0)
        port = listener.getsockname()[1]
        held.append(listener)
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((host, port))
            held.append(filler)
    time.sleep(0.02)  # until the handshakes are over
    return int(port)


# -- peers -------------------------------------------------------------------------------------


async def http(reader: Reader, writer: Writer) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        if path == "/deaf":
            await asyncio.Event().wait()
        if path == "/silent" or not path.startswith("/"):  # also a CONNECT
            await reader.read()
        if path in TRICKLES:
            first, again = TRICKLES[path]
            writer.write(first)
            async for _ in beats(writer):
                writer.write(again)
        if path.startswith("/hop/"):
            await asyncio.sleep(_PAUSE)
            hop = int(path.rpartition("/")[2]) + 1
            writer.write(_FINE if hop > HOPS else redirect(hop))
        else:
            writer.write(_FINE)
        await writer.drain()


TRICKLES: Final = {
    "/header": (b"HTTP/1.1 200 OK\r\nx-slow: ", b"a"),
    "/body": (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"b"),
    "/interim": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
}


def redirect(hop: int) -> bytes:
    return f"HTTP/1.1 302 Found\r\nlocation: /hop/{hop}\r\ncontent-length: 0\r\n\r\n".encode()


async def beats(writer: Writer) -> AsyncIterator[None]:
    """Once now, and again at each beat, until the client has gone."""
    while not writer.transport.is_closing():
        yield
        await writer.drain()
        await asyncio.sleep(PACE)


async def mute(reader: Reader, writer: Writer) -> None:
    await reader.read()


def server_context() -> ssl.SSLContext:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def slowly(context: ssl.SSLContext) -> Callable[[Reader, Writer], Awaitable[None]]:
    """A peer whose part of the handshake is right, and comes byte by byte."""

    async def peer(reader: Reader, writer: Writer) -> None:
        inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        session: Any = context.wrap_bio(inward, outward, server_side=True)
        while not outward.pending:
            inward.write(await reader.read(4096))
            with suppress(ssl.SSLWantReadError):
                session.do_handshake()
        flight = memoryview(outward.read())
        async for _ in beats(writer):
            writer.write(bytes(flight[:1]))
            flight = flight[1:]

    return peer


if __name__ == "__main__":
    asyncio.run(main("namespace" in sys.argv[1:]))
