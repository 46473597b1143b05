"""One request over one connection, as a browser makes it. Standard library only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from holdfast.domain.instant import Duration

__all__ = ["LOCAL", "Reply", "ask", "ask_json"]

LOCAL: Final = "127.0.0.1"
_NOTHING: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: the status, the content type, and the body."""

    status: int
    content_type: str
    body: bytes


async def ask(port: int, method: str, path: str, headers: Mapping[str, str] = _NOTHING) -> Reply:
    """Send a request to this machine, and read the answer to the end of the connection.

    When it is cancelled, the connection is closed: the user has gone.

    Raises:
        OSError: no connection, or it was lost.
        ValueError: what came is no HTTP answer.
    """
    reader, writer = await asyncio.open_connection(LOCAL, port)
    try:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: {LOCAL}:{port}\r\ncontent-length: 0\r\n"
            f"connection: close\r\n{more}\r\n".encode()
        )
        return _parsed(await reader.read(-1))
    finally:
        writer.close()


async def ask_json(port: int, path: str, limit: Duration) -> dict[str, Any] | None:
    """The JSON object at `path`; none when there is no good answer within `limit` seconds."""
    try:
        async with asyncio.timeout(limit):
            reply = await ask(port, "GET", path)
        found: object = json.loads(reply.body)
    except (OSError, ValueError):
        return None
    if reply.status != 200 or not isinstance(found, dict):
        return None
    return cast("dict[str, Any]", found)


def _parsed(raw: bytes) -> Reply:
    head, blank, body = raw.partition(b"\r\n\r\n")
    if not blank:
        raise ConnectionResetError("the connection was closed before an answer was complete")
    lines = head.decode("latin-1").split("\r\n")
    content_type = ""
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-type":
            content_type = value.strip()
    return Reply(int(lines[0].split(" ")[1]), content_type, body)
