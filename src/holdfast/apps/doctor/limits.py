"""Ports, files and the patience of the kernel, as it tells them under /proc."""

from __future__ import annotations

import ipaddress
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from holdfast.apps.doctor.facts import FileFacts, KernelFacts, PortFacts
from holdfast.domain.instant import Duration

__all__ = ["files", "kernel", "ports"]

_LISTEN: Final = "LISTEN"
# Of include/net/tcp_states.h.
_STATES: Final = {
    "01": "ESTABLISHED",
    "02": "SYN_SENT",
    "03": "SYN_RECV",
    "04": "FIN_WAIT1",
    "05": "FIN_WAIT2",
    "06": "TIME_WAIT",
    "07": "CLOSE",
    "08": "CLOSE_WAIT",
    "09": "LAST_ACK",
    "0A": _LISTEN,
    "0B": "CLOSING",
    "0C": "NEW_SYN_RECV",
}
_RTO_MOST: Final[Duration] = 120.0
_RTO_LEAST: Final[Duration] = 0.2


def ports(root: Path) -> PortFacts | None:
    """Ports for connections that go out; none where the kernel does not tell."""
    numbers = _numbers(root, "net/ipv4/ip_local_port_range")
    if len(numbers) != 2:
        return None
    first, last = numbers
    kept_out = _ranges(_text(root / "proc/sys/net/ipv4/ip_local_reserved_ports"))
    reserved = sum(1 for port in kept_out if first <= port <= last)
    used: set[int] = set()
    states: Counter[str] = Counter()
    peers: Counter[str] = Counter()
    for port, peer, state in _sockets(root):
        states[state] += 1
        if first <= port <= last:
            used.add(port)
            if state != _LISTEN:
                peers[peer] += 1
    busiest, count = next(iter(peers.most_common(1)), ("", 0))
    return PortFacts(first, last, reserved, len(used), dict(states), busiest, count)


def _sockets(root: Path) -> Iterator[tuple[int, str, str]]:
    """Local port, peer and state of each TCP socket."""
    for name in ("tcp", "tcp6"):
        for line in _lines(root / "proc/net" / name):
            fields = line.split()
            if len(fields) > 3:
                try:
                    yield _port(fields[1]), _peer(fields[2]), _STATES.get(fields[3], fields[3])
                except ValueError:
                    continue  # the heading, or not a form that we know


def _port(field: str) -> int:
    return int(field.rpartition(":")[2], 16)


def _peer(field: str) -> str:
    # Words of 32 bits, each as this machine keeps it.
    digits, _, port = field.partition(":")
    raw = bytes.fromhex(digits)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    address = ipaddress.ip_address(raw)
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is None:
            return f"[{address}]:{int(port, 16)}"
        address = mapped
    return f"{address}:{int(port, 16)}"


def kernel(root: Path) -> KernelFacts:
    """How patient it is."""
    retries = _number(root, "net/ipv4/tcp_syn_retries")
    linear = _number(root, "net/ipv4/tcp_syn_linear_timeouts") or 0
    retries2 = _number(root, "net/ipv4/tcp_retries2")
    keepalive = _number(root, "net/ipv4/tcp_keepalive_time")
    return KernelFacts(
        # 1 s, twice as long each time; some more of 1 s since Linux 6.5
        # (Documentation/networking/ip-sysctl.rst).
        None if retries is None else float(linear + 2 ** (retries + 1) - 1),
        None if retries2 is None else _backed_off(retries2),
        None if keepalive is None else float(keepalive),
        _number(root, "net/core/somaxconn"),
    )


def _backed_off(retries: int) -> Duration:
    """Seconds until the kernel gives data up, for the shortest time between two attempts."""
    waits = [min(_RTO_LEAST * 2.0**at, _RTO_MOST) for at in range(retries + 1)]
    return sum(waits)


def files(root: Path) -> FileFacts:
    """How many may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = _numbers(root, "fs/file-nr")
    known = len(numbers) == 3
    return FileFacts(
        -1 if soft == resource.RLIM_INFINITY else soft,
        -1 if hard == resource.RLIM_INFINITY else hard,
        numbers[0] if known else None,
        numbers[2] if known else None,
    )


def _number(root: Path, name: str) -> int | None:
    return next(iter(_numbers(root, name)), None)


def _numbers(root: Path, name: str) -> list[int]:
    try:
        return [int(word) for word in _text(root / "proc/sys" / name).split()]
    except ValueError:
        return []


def _ranges(text: str) -> Iterator[int]:
    """`1-3,9` is 1, 2, 3 and 9."""
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            yield from range(int(low), int(high if high.isdigit() else low) + 1)


# What cannot be read is not known: another system, a container that hides it.


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            yield from file
    except OSError:
        return


def _text(path: Path) -> str:
    return next(_lines(path), "")
