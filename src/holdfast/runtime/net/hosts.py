"""What needs no server: literal addresses, `localhost`, the hosts file; and who the servers are."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.domain.discovery.names import canonical

__all__ = ["HOSTS", "RESOLV_CONF", "Hosts", "ResolvConf", "literal", "resolv_conf"]

HOSTS: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
_LOCAL: Final = ("127.0.0.1", "::1")
_LARGEST: Final = 4 * 1024 * 1024


def literal(host: str) -> str | None:
    """The address that `host` is, or none when it is a name."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


class Hosts:
    """The hosts file, read again when it changes.

    Args:
        path: of the file; one that cannot be read is empty.
    """

    def __init__(self, path: Path = HOSTS) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._names: dict[str, tuple[str, ...]] = {}

    def look(self, name: str) -> tuple[str, ...]:
        """Addresses of a name; none when it is not there. `localhost` always is (RFC 6761)."""
        self._refresh()
        found = self._names.get(name, ())
        if not found and (name == "localhost" or name.endswith(".localhost")):
            return _LOCAL
        return found

    def _refresh(self) -> None:
        try:
            stat = os.stat(self._path)
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            with self._path.open("rb") as file:
                text = file.read(_LARGEST).decode("utf-8", "replace")
        except OSError:
            # No hosts file is an empty one, for the C library as well.
            self._stamp, self._names = None, {}
            return
        self._stamp, self._names = stamp, _parsed(text)


def _parsed(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        address = literal(address) or ""
        for name in map(canonical, names if address else ()):
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

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: float = 5.0
    attempts: int = 2

    def candidates(self, name: str) -> tuple[str, ...]:
        """The names to try for `name`, in order."""
        bare = name.rstrip(".")
        if name.endswith("."):
            return (bare,)
        searched = tuple(f"{bare}.{domain}" for domain in self.search)
        return (bare, *searched) if bare.count(".") >= self.ndots else (*searched, bare)


def resolv_conf(path: Path = RESOLV_CONF) -> ResolvConf:
    """Read resolv.conf; where it cannot be read, what the C library takes: a server here."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8", "replace")
    except OSError:
        return ResolvConf(servers=("127.0.0.1",))
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
            search = tuple(canonical(word) for word in words[1:] if canonical(word))
        elif words[0] == "options":
            for option in words[1:]:
                key, _, value = option.partition(":")
                if key in numbers and value.isdigit():
                    numbers[key] = int(value)
    return ResolvConf(
        tuple(servers[:3]) or ("127.0.0.1",),
        search[:6],
        min(numbers["ndots"], 15),
        float(min(max(numbers["timeout"], 1), 30)),
        min(max(numbers["attempts"], 1), 5),
    )
