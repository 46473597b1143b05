"""The Unix socket on which a running process answers its operator.

Minimal HTTP/1.1, one request for each connection:

    /           which process this is (JSON)
    /tree       the open scopes, as text
    /tree.json  the same, with the counters
    /policy     the policy that holds, as text
    /counts     the counters (JSON)
    /lifecycle  where the process is in its life, and what happened (JSON)
    /prestop    POST: be unready from now on; how long the lame duck still lasts (JSON)

No task is made for a connection, so that nothing of it appears in the tree that it shows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from holdfast.domain.errors import HoldfastError
from holdfast.runtime.admin import listen_here, socket_of
from holdfast.runtime.driver import driver_of
from holdfast.runtime.live import tree

__all__ = ["Operator", "Pages", "pages"]

Pages = Mapping[str, Callable[[], object]]
"""What is shown under a path: a text, or something for JSON."""


def pages(
    about: Callable[[], object],
    policy: Callable[[], str],
    counts: Counter[str],
    lifecycle: Callable[[], object],
) -> Pages:
    """The pages of a service.

    Args:
        about: which process this is.
        policy: the policy that holds, as text.
        counts: its requests by what became of them.
        lifecycle: where the process is, and what happened.
    """
    return {
        "/": about,
        "/tree": lambda: f"{tree()}\n",
        "/tree.json": lambda: {**tree().as_dict(), "requests": dict(counts)},
        "/policy": policy,
        "/counts": lambda: {"scopes": tree().counts, "requests": dict(counts)},
        "/lifecycle": lifecycle,
    }


_LARGEST: Final = 8192
_LIMIT: Final = 2.0
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    500: "Internal Server Error",
}
_log: Final = logging.getLogger("holdfast.serve")


class Operator:
    """The socket of this process. It is open between `start` and `close`.

    Args:
        pages: what GET shows.
        actions: what POST does, and shows then.
    """

    def __init__(self, pages: Pages, actions: Pages) -> None:
        self.pages = pages
        self.actions = actions
        self.path = socket_of(os.getpid())
        self._server: asyncio.AbstractServer | None = None
        self._open: set[asyncio.Transport] = set()

    async def start(self) -> bool:
        """Listen. A service does not fail for its operator's socket: false when there is none."""
        loop = asyncio.get_running_loop()
        try:
            sock = listen_here()
        except (OSError, HoldfastError) as error:
            _log.warning("no operator's socket, so `holdfast tree` will not work: %s", error)
            return False
        self._server = await loop.create_unix_server(
            lambda: _Answer(self.pages, self.actions, self._open), sock=sock
        )
        return True

    def close(self) -> None:
        """Stop listening and remove the socket. Does nothing when it is not open."""
        if self._server is None:
            return
        server, self._server = self._server, None
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        server.close()
        for transport in tuple(self._open):
            transport.abort()


class _Answer(asyncio.Protocol):
    """One connection."""

    def __init__(self, pages: Pages, actions: Pages, open_: set[asyncio.Transport]) -> None:
        self._known = {"GET": pages, "POST": actions}
        self._open = open_
        self._driver = driver_of(asyncio.get_running_loop())
        self._request = b""
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: the transports of uvloop have the methods, but are no subclasses.
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self._transport)
        # Also for a client that does not read the answer.
        self._alarm = self._driver.alarm(self._driver.now() + _LIMIT, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self._transport)
        self._driver.drop(self._alarm)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._request += data
        if len(self._request) > _LARGEST:
            self._answer(413, "the request is too large\n")
        elif b"\r\n\r\n" in self._request:
            self._answer(*self._page())

    def _page(self) -> tuple[int, object]:
        words = self._request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return 400, "this speaks HTTP/1.1\n"
        known = self._known.get(words[0])
        path = words[1].partition("?")[0]
        if known is None or (path not in known and any(path in p for p in self._known.values())):
            return 405, f"{words[0]} is not for this\n"
        page = known.get(path)
        if page is None:
            return 404, f"nothing here; there is {' '.join(known)}\n"
        try:
            return 200, page()
        except Exception:  # the service must live on, whatever is wrong with a view of it
            _log.exception("the operator's page %s failed", words[1])
            return 500, "failed; the log of the service says why\n"

    def _answer(self, status: int, content: Any) -> None:
        self._answered = True
        if isinstance(content, str):
            kind, body = "text/plain; charset=utf-8", content.encode("utf-8", "replace")
        else:
            kind, body = "application/json", json.dumps(content).encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._transport.write(head.encode("latin-1") + body)
        self._transport.close()
