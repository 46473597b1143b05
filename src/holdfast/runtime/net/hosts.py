"""What needs no server: literal addresses, `localhost`, the hosts file; and who the servers are."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from holdfast.domain.discovery.names import canonical
from holdfast.domain.instant import Duration, Instant
from holdfast.runtime.clock import monotonic

__all__ = ["HOSTS", "LOOKED_AT", "RESOLV_CONF", "Hosts", "ResolvConf", "Watched", "literal"]

HOSTS: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
LOOKED_AT: Final[Duration] = 1.0
"""Seconds after which a file is looked at again."""

_LOCAL: Final = ("127.0.0.1", "::1")
_LARGEST: Final = 4 * 1024 * 1024

T = TypeVar("T")


def literal(host: str) -> str | None:
    """The address that `host` is, or none when it is a name."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" not in bare and not bare[-1:].isdigit():
        return None  # most are names, and the next lines cost more than all the rest
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


class Watched(Generic[T]):
    """What a file says, read again when it has changed. Looked at once a second at the most.

    Args:
        path: of the file; one that cannot be read is empty.
        parse: what to make of its text.
    """

    def __init__(self, path: Path, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._due: Instant = -1.0
        self._stamp: tuple[int, int, int] | None = None
        self._value = parse("")

    def value(self) -> T:
        """What it says now."""
        now = monotonic()
        if now >= self._due:
            self._due = now + LOOKED_AT
            self._refresh()
        return self._value

    def _refresh(self) -> None:
        try:
            stat = os.stat(self._path)
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp == self._stamp:
                return
            with self._path.open("rb") as file:
                text = file.read(_LARGEST).decode("utf-8", "replace")
        except OSError:
            # No such file is an empty one, for the C library as well.
            self._stamp, self._value = None, self._parse("")
            return
        self._stamp, self._value = stamp, self._parse(text)


class Hosts:
    """The hosts file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path = HOSTS) -> None:
        self._file = Watched(path, _hosts)

    def look(self, name: str) -> tuple[str, ...]:
        """Addresses of a name; none when it is not there. `localhost` always is (RFC 6761)."""
        found = self._file.value().get(name, ())
        if not found and (name == "localhost" or name.endswith(".localhost")):
            return _LOCAL
        return found


def _hosts(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        first, *names = line.partition("#")[0].split() or [""]
        address = literal(first)
        if address is None:
            continue
        for name in map(canonical, names):
            if address not in found.get(name, ()):
                found[name] = (*found.get(name, ()), address)
    return found


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What resolv.conf(5) says, as far as it is needed here.

    Attributes:
        servers: addresses of name servers.
        search: domains that are tried behind a short name.
        ndots: dots that a name needs to be tried as it is first.
        timeout: seconds for one question to one server.
        attempts: rounds through all servers.
    """

    servers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: Duration = 5.0
    attempts: int = 2

    @staticmethod
    def parse(text: str) -> ResolvConf:
        """Read the text of the file; what is not there is what the C library takes."""
        servers: list[str] = []
        search: tuple[str, ...] = ()
        numbers = {"ndots": 1, "timeout": 5, "attempts": 2}
        for line in text.splitlines():
            words = line.split()
            if not words or words[0][0] in "#;":
                continue
            if words[0] == "nameserver" and len(words) > 1:
                servers.append(words[1])
            elif words[0] in ("search", "domain"):
                search = tuple(domain for word in words[1:] if (domain := canonical(word)))
            elif words[0] == "options":
                numbers.update(_numbers(words[1:]))
        # The bounds are those of glibc: MAXNS, RES_MAXNDOTS, RES_MAXRETRANS, RES_MAXRETRY.
        return ResolvConf(
            tuple(servers[:3]) or ("127.0.0.1",),
            search,
            min(numbers["ndots"], 15),
            float(min(max(numbers["timeout"], 1), 30)),
            min(max(numbers["attempts"], 1), 5),
        )

    def candidates(self, name: str) -> tuple[str, ...]:
        """The names to try for `name`, in order. One that ends in a dot is complete."""
        bare = name.rstrip(".")
        if name.endswith("."):
            return (bare,)
        searched = tuple(f"{bare}.{domain}" for domain in self.search)
        return (bare, *searched) if bare.count(".") >= self.ndots else (*searched, bare)


def _numbers(options: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for option in options:
        key, _, value = option.partition(":")
        # int() takes more digits than ASCII has.
        if key in ("ndots", "timeout", "attempts") and value.isascii() and value.isdigit():
            found[key] = int(value[:9])
    return found
