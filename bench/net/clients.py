"""What every contender is: a client, set up in the way its documentation says, for one second."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from bench.net.bad import Ask

__all__ = ["LIMIT", "Client", "Open", "fetch"]

LIMIT: Final = 1.0

Call = Callable[[], Any]
"""Makes the call; returns the status. Of an asynchronous client, a coroutine function."""
Prepare = Callable[[Ask], Any]
"""Everything that comes before the clock: returns the call, and what closes the client."""
Open = Callable[[str, int, ssl.SSLContext | None], Awaitable[tuple[Any, Any]]]


@dataclass(frozen=True, slots=True)
class Client:
    """A contender.

    Attributes:
        name: short.
        how: the second was said, for people.
        prepare: see `Prepare`; of an asynchronous client it is called on the loop.
        modules: that it needs; they are imported before anything is measured.
        loop: `asyncio` or `uvloop`; empty for a client that blocks.
        ours: whether Holdfast bounds it.
        trailed: whether an error of it says in which phase, also after the dial.
    """

    name: str
    how: str
    prepare: Prepare
    modules: tuple[str, ...] = ()
    loop: str = ""
    ours: bool = False
    trailed: bool = True


async def fetch(ask: Ask, open_one: Open, context: ssl.SSLContext) -> int:
    """A request by hand over streams, as a plain program would do it; the status."""
    url = ask.url
    while True:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
        reader, writer = await open_one(host, port, context if parts.scheme == "https" else None)
        try:
            writer.write(_head(ask, parts.path, parts.netloc))
            if ask.upload:
                writer.write(bytes(ask.upload))
            await writer.drain()
            status, headers = await _answer(reader)
            await reader.readexactly(int(headers.get("content-length", "0")))
        finally:
            # Without waiting: what is stuck would never drain.
            (getattr(writer, "transport", None) or writer).abort()
        if status != 302:
            return status
        url = urljoin(url, headers["location"])


def _head(ask: Ask, path: str, netloc: str) -> bytes:
    method = "POST" if ask.upload else "GET"
    lines = [f"{method} {path} HTTP/1.1", f"host: {netloc}"]
    if ask.upload:
        lines.append(f"content-length: {ask.upload}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        if status >= 200:
            pairs = (line.partition(":") for line in head[1:] if line)
            return status, {name.lower(): value.strip() for name, _, value in pairs}


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
    """Ask the proxy at the other end for a way to `target`."""
    writer.write(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
