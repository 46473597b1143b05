"""One connection through the fault proxy: two pumps, one for each direction.

Everything here runs on the thread and loop of the proxy.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from holdfast.domain.instant import NEVER, Duration, Instant

__all__ = ["Link", "Pump", "Rules", "Then", "close_hard"]

_SLICE: Final = 65_536
_MOST_QUEUED: Final = 262_144
"""Bytes that wait in the proxy; then it reads no more, and the sender feels it."""
_TICK: Final[Duration] = 0.02
"""With a rate, bytes go in bundles for so many seconds, or one at a time."""
_RESET: Final = struct.pack("ii", 1, 0)


class Then(StrEnum):
    """What happens when a limit of bytes is reached."""

    CUT = "cut"
    RESET = "reset"
    STALL = "stall"


@dataclass(slots=True)
class Rules:
    """What is done to the bytes of one direction, on all connections.

    Attributes:
        latency: seconds that each byte is late.
        jitter: seconds by which that is more or less, evenly spread.
        rate: bytes per second; infinite without a limit.
        stalled: whether nothing moves.
        most: bytes that each connection carries; negative without a limit.
        then: what happens after them.
        chance: numbers from 0 to 1, for the jitter.
    """

    chance: Callable[[], float]
    latency: Duration = 0.0
    jitter: Duration = 0.0
    rate: float = NEVER
    stalled: bool = False
    most: int = -1
    then: Then = Then.CUT

    def delay(self) -> Duration:
        """Seconds for the next bytes."""
        if not self.jitter:
            return self.latency
        return max(0.0, self.latency + self.jitter * (2 * self.chance() - 1))


class Link:
    """One connection of a client, and ours to the server.

    Attributes:
        client: the accepted socket; this owns it.
        peer: its other side, for people.
        server: ours to the server.
        to_server: bytes from the client.
        to_client: bytes from the server.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        peer: str,
        target: tuple[socket.AddressFamily, Any],
        rules: tuple[Rules, Rules],
        gone: Callable[[Link], object],
    ) -> None:
        self.loop = loop
        self.client = client
        self.peer = peer
        family, address = target
        self.server = socket.socket(family, socket.SOCK_STREAM)
        self._gone = gone
        self.closed = False
        client.setblocking(False)
        self.server.setblocking(False)
        for sock in (client, self.server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.to_server = Pump(self, rules[0], client, self.server)
        self.to_client = Pump(self, rules[1], self.server, client)
        self.server.connect_ex(address)
        loop.add_writer(self.server, self._connected)

    def _connected(self) -> None:
        self.loop.remove_writer(self.server)
        if self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close(hard=True)  # nobody listens there; the client was accepted long ago
            return
        self.to_server.start()
        self.to_client.start()

    def settle(self) -> None:
        """One direction has ended; with both, so has the connection."""
        if self.to_server.over and self.to_client.over:
            self.close()

    def close(self, *, hard: bool = False) -> None:
        """Close both sockets: with a FIN to both sides, with a RST if `hard`."""
        if self.closed:
            return
        self.closed = True
        for pump in (self.to_server, self.to_client):
            pump.stop()
        for sock in (self.client, self.server):
            self.loop.remove_reader(sock)
            self.loop.remove_writer(sock)
            if hard:
                close_hard(sock)
            else:
                _close_softly(sock)
        self._gone(self)


class Pump:
    """One direction of one connection.

    Attributes:
        moved: bytes that were handed on.
        over: whether its end was handed on.
    """

    def __init__(
        self, link: Link, rules: Rules, source: socket.socket, sink: socket.socket
    ) -> None:
        self.link = link
        self.rules = rules
        self.source = source
        self.sink = sink
        self.moved = 0
        self.over = False
        self._started = False
        self._ended = False  # the source has said all
        self._queue: deque[tuple[Instant, bytes]] = deque()
        self._queued = 0
        self._last: Instant = 0.0
        self._next: Instant = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reads = self._writes = False

    def start(self) -> None:
        """The connection is up in both directions."""
        self._started = True
        self.work()

    def stop(self) -> None:
        """No timer goes off any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def cut(self) -> None:
        """Tell the receiver that this was all. What the sender still says is thrown away."""
        if self.over or not self._started:
            return
        self.over = True
        self._queue.clear()
        self._queued = 0
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.link.close(hard=True)  # it has gone already
            return
        self.link.settle()
        if not self.link.closed:
            self.work()

    # -- on the loop -----------------------------------------------------------------------------

    def work(self) -> None:
        """Hand on what may go now, and arrange to be called when more may."""
        if not self._started or self.link.closed:
            return
        self.stop()
        blocked = self._hand_on()
        if self.link.closed:
            return
        self._listen(blocked)

    def _hand_on(self) -> bool:
        """Whether the receiver takes no more at present."""
        rules, loop = self.rules, self.link.loop
        while not (self.over or self._still()):
            if self._at_limit():
                self._act(rules.then)
                return False
            if not self._queue:
                return False
            due, data = self._queue[0]
            now = loop.time()
            if (at := max(due, self._next)) > now:
                self._timer = loop.call_at(at, self.work)
                return False
            if not data:
                self.cut()
                return False
            try:
                sent = self.sink.send(data[: self._allowed(len(data))])
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                self.link.close(hard=True)
                return False
            self._sent(due, data, sent, now)
        return False

    def _allowed(self, size: int) -> int:
        rules = self.rules
        if rules.most >= 0:
            size = min(size, rules.most - self.moved)
        if rules.rate != NEVER:
            size = min(size, max(1, int(rules.rate * _TICK)))
        return size

    def _sent(self, due: Instant, data: bytes, sent: int, now: Instant) -> None:
        self.moved += sent
        self._queued -= sent
        self._next = now + sent / self.rules.rate
        if sent == len(data):
            self._queue.popleft()
        else:
            self._queue[0] = (due, data[sent:])

    def _at_limit(self) -> bool:
        return 0 <= self.rules.most <= self.moved

    def _still(self) -> bool:
        """Whether nothing moves, until the rules change."""
        return self.rules.stalled or (self._at_limit() and self.rules.then is Then.STALL)

    def _act(self, then: Then) -> None:
        if then is Then.CUT:
            self.cut()
        else:
            self.link.close(hard=True)

    def _listen(self, blocked: bool) -> None:
        loop = self.link.loop
        room = not self._still() and self._queued < _MOST_QUEUED
        wanted = not self._ended and (self.over or room)
        if wanted and not self._reads:
            loop.add_reader(self.source, self._readable)
        elif self._reads and not wanted:
            loop.remove_reader(self.source)
        if blocked and not self._writes:
            loop.add_writer(self.sink, self.work)
        elif self._writes and not blocked:
            loop.remove_writer(self.sink)
        self._reads, self._writes = wanted, blocked

    def _readable(self) -> None:
        try:
            data = self.source.recv(_SLICE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.link.close(hard=True)
            return
        self._ended = not data
        if not self.over:
            # What was sent later never overtakes, whatever the jitter says.
            self._last = max(self._last, self.link.loop.time() + self.rules.delay())
            self._queue.append((self._last, data))
            self._queued += len(data)
        self.work()


def _close_softly(sock: socket.socket) -> None:
    """Close with a FIN, which takes that nothing is left unread."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
        while sock.recv(_SLICE):
            pass
    except OSError:
        pass  # nothing is there to read, or the peer was faster
    finally:
        sock.close()


def close_hard(sock: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    finally:
        sock.close()
