"""A tunnel through an HTTP proxy (RFC 9110, section 9.3.6): what is sent, and what is answered."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["MOST_HEAD", "ProxyAddress", "connect_request", "over", "refusal"]

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
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"ProxyAddress({self.host!r}, {self.port})"


def connect_request(host: str, port: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """What is sent to the proxy.

    Raises:
        ValueError: a header, or the host, has a character that would end it.
    """
    # A name of other letters than those of ASCII goes over the wire as IDNA (RFC 3490).
    name = host if host.isascii() else host.encode("idna").decode("ascii")
    authority = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    if any(char <= " " or char == "\x7f" for char in authority):
        raise ValueError(f"{host[:80]!r} is not the name of a host: there is a space in it")
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if any(char in line for line in lines for char in "\r\n\0"):
        raise ValueError("a header for the proxy has a line break in it")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_HTTP: Final = b"HTTP/"


def over(head: bytes | bytearray) -> bool:
    """Whether `refusal` can be asked: the empty line is there, or this becomes no HTTP.

    Of what is no HTTP, a TLS alert or the banner of another protocol, more may never come.
    """
    if not head.startswith(_HTTP):
        return len(head) >= len(_HTTP)
    return head.endswith((b"\n\r\n", b"\n\n"))


def refusal(head: bytes, proxy: ProxyAddress, target: str) -> OSError | int | None:
    """What the head of the proxy's answer says: an interim status, an error, or none: go on.

    A status of the 400s is a `PermissionError`, as asking again would not help; one of any other
    kind a `ConnectionRefusedError`.

    Args:
        head: up to and with the empty line; of what is no HTTP, as much as there is.
        proxy: who answered.
        target: what it was to connect to.
    """
    status = head.split(b"\n", 1)[0].rstrip(b"\r").decode("latin-1")
    version, _, rest = status.partition(" ")
    code, said = rest[:3], f"proxy {proxy} answered CONNECT {target} with"
    # Not `isdigit`, to which a superscript two is one.
    numeric = code.isascii() and code.isdecimal() and len(code) == 3 and rest[3:4] in ("", " ")
    if not version.startswith("HTTP/1.") or not numeric:
        hint = "; does it speak TLS?" if head[:1] == b"\x15" else ""
        return OSError(errno.EPROTO, f"{said} what is not HTTP/1.1: {status[:60]!r}{hint}")
    if code[0] == "1" and code != "101":  # nothing was offered that could be switched to
        return int(code)
    if code[0] == "2":
        return None
    number = errno.EACCES if code[0] == "4" else errno.ECONNREFUSED
    return OSError(number, f"{said} {rest[:60]!r}")
