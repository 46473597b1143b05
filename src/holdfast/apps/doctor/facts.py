"""What was found, as plain values: for rulings, for people and for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from holdfast.domain.instant import Duration

__all__ = [
    "BUSY",
    "IDLE",
    "Facts",
    "FileFacts",
    "HostFacts",
    "KernelFacts",
    "Lateness",
    "LookUp",
    "NameFacts",
    "PortFacts",
    "Reply",
    "lateness",
]

IDLE: Final = "idle"
BUSY: Final = "busy thread"


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late one kind of waiting woke, in seconds; negative is early.

    Attributes:
        waiter: the loop or the selector: `asyncio`, `uvloop`, `epoll`.
        timer: whose timer: `loop`, `holdfast` (a deadline of ours on that loop) or `selector`.
        load: what else ran, `idle` or `busy thread`.
        asked: seconds that were asked for.
        count: times that it was tried.
        earliest: the least.
        p50: the median.
        p99: no more than this in 99 of 100 (nearest rank); of up to 100 tries the worst, or nearly.
        worst: the most.
    """

    waiter: str
    timer: str
    load: str
    asked: Duration
    count: int
    earliest: Duration
    p50: Duration
    p99: Duration
    worst: Duration


def lateness(
    waiter: str, timer: str, load: str, asked: Duration, found: Sequence[Duration]
) -> Lateness:
    """Sum up what was measured; at least one value."""
    ordered = sorted(found)
    count = len(ordered)

    def rank(of_hundred: int) -> Duration:
        return ordered[max(0, math.ceil(count * of_hundred / 100) - 1)]

    return Lateness(waiter, timer, load, asked, count, ordered[0], rank(50), rank(99), ordered[-1])


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Where this was measured.

    Attributes:
        system: name and release of the kernel.
        python: implementation and version.
        cpus: processors that may be used, with fractions.
        cpus_reason: who says so.
        load: processes that ran or waited to, over the last minute; none where unknown.
        switch_interval: seconds after which a thread hands the interpreter over.
    """

    system: str
    python: str
    cpus: float
    cpus_reason: str
    load: float | None
    switch_interval: Duration


@dataclass(frozen=True, slots=True)
class Reply:
    """Whether one name server answers.

    Attributes:
        server: its address.
        took: seconds until it answered; none when it did not.
        problem: why not.
    """

    server: str
    took: Duration | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LookUp:
    """One name that was looked up as a service would: with getaddrinfo, bounded by us.

    Attributes:
        name: which.
        took: seconds.
        ended: `found`, `no such name`, `no answer` (the bound was reached) or `failed`.
        detail: the addresses, or the error.
    """

    name: str
    took: Duration
    ended: str
    detail: str


@dataclass(frozen=True, slots=True)
class NameFacts:
    """How names are looked up here.

    Attributes:
        servers: as resolv.conf lists them.
        search: domains that are tried behind a name.
        ndots: dots that a name needs to be tried as it is first.
        timeout: seconds for one question to one server.
        attempts: rounds through all servers.
        sources: where the C library looks, in order (`hosts:` of nsswitch.conf).
        replies: of the servers.
        look_ups: what was looked up.
        dead_name: seconds that a plain getaddrinfo takes when no server answers, for a name that
            ends in a dot.
        dead_searched: the same for other names, which search domains are put behind.
        asked_first: names that are asked for before `api.example.com` itself.
        bound_late: seconds that a look-up of ours ended after its limit, with a silent server.
    """

    servers: tuple[str, ...]
    search: tuple[str, ...]
    ndots: int
    timeout: Duration
    attempts: int
    sources: tuple[str, ...]
    replies: tuple[Reply, ...]
    look_ups: tuple[LookUp, ...]
    dead_name: Duration
    dead_searched: Duration
    asked_first: int
    bound_late: Duration


@dataclass(frozen=True, slots=True)
class PortFacts:
    """Local ports for connections that go out.

    Attributes:
        first: of the range.
        last: of the range.
        reserved: ports in it that the kernel keeps out.
        in_use: ports in it that sockets have.
        states: sockets by TCP state.
        busiest: the peer with most connections from here, for people; empty without one.
        to_busiest: how many those are.
    """

    first: int
    last: int
    reserved: int
    in_use: int
    states: dict[str, int] = field(default_factory=dict[str, int])
    busiest: str = ""
    to_busiest: int = 0

    @property
    def total(self) -> int:
        """Ports that connections to one peer can have."""
        return max(0, self.last - self.first + 1 - self.reserved)


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """How patient the kernel is, where nobody else is less so. None where it is unknown.

    Attributes:
        connect_gives_up: seconds after which an unanswered connect ends.
        write_gives_up: seconds, about, after which a connection ends whose data nobody confirms.
        keepalive_begins: seconds of silence after which a kept connection is looked at.
        backlog_most: connections that may wait to be accepted.
    """

    connect_gives_up: Duration | None
    write_gives_up: Duration | None
    keepalive_begins: Duration | None
    backlog_most: int | None


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Files and sockets that may be open. -1 is no limit, none is unknown.

    Attributes:
        soft: this process now.
        hard: this process if it asks.
        system_open: on the machine.
        system_most: on the machine at most.
    """

    soft: int
    hard: int
    system_open: int | None
    system_most: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """All of them."""

    host: HostFacts
    timers: tuple[Lateness, ...]
    names: NameFacts
    ports: PortFacts | None
    kernel: KernelFacts
    files: FileFacts
