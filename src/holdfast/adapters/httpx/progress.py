"""How far a call is: the phases it went through, noted cheaply until somebody asks.

A healthy call is asked by nobody, so all that happens in it is that an instant is noted. The trail
is made from these notes when there is a dial, an error or an observer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from holdfast.domain.instant import Instant
from holdfast.domain.phases import Phase, Trail

__all__ = ["CURRENT", "DIRECT", "Progress", "Way"]

_DIAL: Final = (Phase.POOL, Phase.DNS, Phase.CONNECT)
_HTTP: Final = (Phase.REQUEST, Phase.HEADER, Phase.BODY)
_SECURE: Final = ("https", "wss")


class Way(NamedTuple):
    """How a transport gets to the servers.

    Attributes:
        proxy: host and port of the proxy in between; empty without one.
        tunnel: whether that proxy is asked to connect also where no TLS follows, as with SOCKS.
    """

    proxy: str = ""
    tunnel: bool = False

    def route(self, scheme: str) -> tuple[Phase, ...]:
        """The phases of a call to a URL of `scheme`."""
        secure = scheme in _SECURE
        tunnel = (Phase.PROXY,) if self.proxy and (secure or self.tunnel) else ()
        return (*_DIAL, *tunnel, *((Phase.TLS,) if secure else ()), *_HTTP)


DIRECT: Final = Way()


class Progress:
    """What is noted of one call. It refers to no request and no body: a connection may keep it.

    Args:
        trail: the record of the call. Its target and its route are set here, when it is asked for.
        method: of the request.
        url: where to, as the library has it.
        way: how the transport gets there.
        now: the clock.

    Attributes:
        sent: bytes of it that were written to its connection.
        received: bytes that were read for it.
        interim: status of the last interim response; 0 without one.
        head: whether the head of the response is there.
        dialled: closes the connection that was made for it, until that is in use.
    """

    __slots__ = (
        "_marks",
        "_method",
        "_now",
        "_trail",
        "_url",
        "_way",
        "dialled",
        "head",
        "interim",
        "received",
        "sent",
    )

    def __init__(
        self, trail: Trail, method: str, url: Any, way: Way, now: Callable[[], Instant]
    ) -> None:
        self._trail = trail
        self._method = method
        self._url = url
        self._way = way
        self._now = now
        self._marks: list[tuple[Phase, Instant]] | None = []
        self.sent = self.received = self.interim = 0
        self.head = False
        self.dialled: Callable[[], None] | None = None

    def note(self, phase: Phase) -> None:
        """`phase` begins. For one that no share bounds."""
        if self._marks is None:
            self._trail.begin(phase, self._now())
        else:
            self._marks.append((phase, self._now()))

    def got(self, data: bytes) -> None:
        """Bytes came for it."""
        self.received += len(data)
        # An interim response of HTTP/1.1: the library passes over them in silence.
        if not self.head and data[9:10] == b"1" and data.startswith(b"HTTP/1."):
            status = data[9:12]
            if status.isdigit() and status != b"101":
                self.interim = int(status)

    @property
    def trail(self) -> Trail:
        """The record of the call, up to date."""
        trail, marks = self._trail, self._marks
        if marks is not None:
            self._marks = None
            trail.target, trail.route = self._target(), self._way.route(self._url.scheme)
            for phase, at in marks:
                trail.begin(phase, at)
        trail.sent, trail.received, trail.interim = self.sent, self.received, self.interim
        return trail

    def _target(self) -> str:
        # For people, without what may be secret: user, password, query.
        url = self._url
        path = url.raw_path.partition(b"?")[0].decode("ascii", "replace")
        netloc = url.netloc.decode("ascii", "replace")
        via = f" via {self._way.proxy}" if self._way.proxy else ""
        return f"{self._method} {url.scheme}://{netloc}{path}{via}"


CURRENT: Final[ContextVar[Progress | None]] = ContextVar("holdfast.httpx", default=None)
"""The call that the running task works for."""
