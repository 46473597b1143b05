"""Ask a running process on its operator's socket (`runtime.admin` says where those are)."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Final

from holdfast.domain.instant import Duration

__all__ = ["call"]

_LARGEST: Final = 64 * 1024 * 1024


class _Local(http.client.HTTPConnection):
    def __init__(self, path: Path, limit: Duration) -> None:
        super().__init__("localhost", timeout=limit)
        self._path = path
        self._limit = limit

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._limit)
        self.sock.connect(os.fspath(self._path))


def call(path: Path, page: str, *, method: str = "GET", limit: Duration = 3.0) -> tuple[int, bytes]:
    """Status and body of a page. Waits; not for an event loop.

    Args:
        path: the socket.
        page: path of the page, for example `/tree`.
        method: of HTTP.
        limit: seconds for each step of it.

    Raises:
        OSError: nobody listens, or it does not answer in time (a `TimeoutError`).
        http.client.HTTPException: what answers does not speak HTTP.
    """
    connection = _Local(path, limit)
    try:
        connection.request(method, page, headers={"accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(_LARGEST)
    finally:
        connection.close()
