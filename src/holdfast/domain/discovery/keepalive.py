"""When a silent peer of gRPC is taken for dead, as options of its channels and servers.

A ping goes out when nothing has come for `time`; the connection is dead when nothing comes back
within `timeout`. Measured with grpcio 1.85, and why these options go together:

- `grpc.keepalive_timeout_ms` alone sees a dead peer after 65 s: a ping has a time-out of its own,
  `grpc.http2.ping_timeout_ms`, of a minute;
- with calls that are silent, or none, it stops after two pings, without
  `grpc.http2.max_pings_without_data` = 0;
- a server that was not told so takes pings for abuse: from the third one that comes sooner than
  5 minutes (2 hours where there is no call) after the one before it, it closes the connection with
  GOAWAY `too_many_pings`, and calls that are in flight fail as UNAVAILABLE.

So both sides have to agree: `client_options` are for peers that allow it, and `server_options` make
a server one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

from holdfast.domain.instant import Duration

__all__ = ["ChannelOptions", "Keepalive"]

ChannelOptions: TypeAlias = tuple[tuple[str, int], ...]
"""As grpc takes them."""

_LONGEST: Final[Duration] = 86_400.0
_LEAST: Final[Duration] = 1.0


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How soon a dead peer is seen: within `time + timeout`, and a moment.

    Attributes:
        time: seconds without a byte from the peer, after which it is asked; one at least, as grpc
            takes less for one.
        timeout: seconds that it has to answer.
        without_calls: whether it is also asked while no call is in flight, so that the next call
            does not find a dead connection. etcd, and other servers in Go, have to be told so.

    Raises:
        ValueError: `time` or `timeout` is out of bounds: a day at most.
    """

    time: Duration = 5.0
    timeout: Duration = 3.0
    without_calls: bool = True

    def __post_init__(self) -> None:
        if not _LEAST <= self.time <= _LONGEST:
            raise ValueError(f"time must be 1 s to 86400 s, not {self.time}")
        if not 0.001 <= self.timeout <= _LONGEST:
            raise ValueError(f"timeout must be 1 ms to 86400 s, not {self.timeout}")

    @property
    def bound(self) -> Duration:
        """Seconds after its last byte within which a dead peer is seen."""
        return self.time + self.timeout

    def client_options(self) -> ChannelOptions:
        """For a channel. The peer has to allow it, see the module."""
        return self._pings()

    def server_options(self) -> ChannelOptions:
        """For a server: it allows clients pings of this `time`, and sends such pings itself.

        Clients may be twice as quick, so that one whose clock or network is uneven is not turned
        away.
        """
        least = math.floor(self.time * 500)
        return (*self._pings(), ("grpc.http2.min_ping_interval_without_data_ms", least))

    def _pings(self) -> ChannelOptions:
        timeout = math.ceil(self.timeout * 1000)
        return (
            ("grpc.keepalive_time_ms", math.ceil(self.time * 1000)),
            ("grpc.keepalive_timeout_ms", timeout),
            ("grpc.http2.ping_timeout_ms", timeout),
            ("grpc.keepalive_permit_without_calls", int(self.without_calls)),
            ("grpc.http2.max_pings_without_data", 0),
        )
