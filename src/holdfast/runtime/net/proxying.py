"""A tunnel through an HTTP proxy (RFC 9110, section 9.3.6): what is sent, and what is answered."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["MOST_HEAD", "ProxyAddress", "connect_request", "refusal"]

MOST_HEAD: Final = 16_384
"""Bytes that the head of a proxy's answer may have."""


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """A proxy that is asked to CONNECT.

    Attributes:
        host: its name or address.
        port: its port.
        headers: sent to it, for example `("Proxy-Authorization", "Basic ...")`. They are in no
            error and no log line.
        tls: when the connection to the proxy itself is TLS.
    """

    host: str
    port: int
    headers: Sequence[tuple[str, str]] = ()
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"ProxyAddress({self.host!r}, {self.port})"


def connect_request(host: str, port: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """What is sent to the proxy.

    Raises:
        ValueError: a header has a line break in it.
    """
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header for the proxy, or the name of the host, has a line break in it")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def refusal(head: bytes, proxy: ProxyAddress, target: str) -> OSError | int | None:
    """What the head of the proxy's answer says: an interim status, an error, or none: go on.

    Args:
        head: up to and with the empty line.
        proxy: who answered.
        target: what it was to connect to.
    """
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    version, _, rest = status.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/") or not code.isdigit():
        what = f"no HTTP: {status[:60]!r}"
        return OSError(errno.EPROTO, f"proxy {proxy} answered CONNECT {target} with {what}")
    if code[0] == "1":
        return int(code)
    if code[0] == "2":
        return None
    return ConnectionRefusedError(
        errno.ECONNREFUSED, f"proxy {proxy} answered CONNECT {target} with {rest[:60]!r}"
    )
