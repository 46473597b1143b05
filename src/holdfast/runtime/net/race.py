"""Connecting to the first of several addresses that answers (RFC 8305, "happy eyeballs").

Our own, and not aiohappyeyeballs, for three reasons: the library stands on nothing but Python;
every address is to be in the record of the call, with its time and its error; and the pace follows
the share of the budget that connecting has, so that the last address gets its turn as well.

It works with callbacks alone. There is no task per address whose end would have to be waited for,
so a race that is cancelled has closed every socket before the next turn of the loop. That a
connection is there is verified: `SO_ERROR` is read once and kept, as reading clears it, and a
socket that TCP has connected to itself is refused.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence

from holdfast.domain.instant import NEVER, Instant
from holdfast.domain.phases import Phase, Trail
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.attempt import SocketOptions, begun, failed, paced, verdict
from holdfast.runtime.net.phased import within
from holdfast.runtime.net.resolver import Address
from holdfast.runtime.timers import Alarm

__all__ = ["connected", "interleaved", "race"]


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Addresses of the two families in turn, that of the first one first."""
    first = deque(a for a in addresses if a.family == addresses[0].family)
    other = deque(a for a in addresses if a.family != addresses[0].family)
    mixed: list[Address] = []
    while first or other:
        mixed += [family.popleft() for family in (first, other) if family]
    return mixed


async def connected(
    addresses: Sequence[Address], *, trail: Trail, options: SocketOptions
) -> socket.socket:
    """The phase `tcp.connect`: a race within its share.

    To be preferred to a race in a phase of one's own: where the time runs out in the moment in
    which a connection is there, that is closed.

    Raises:
        PhaseTimeout: the share is spent.
        DeadlineExceeded: the limit of the whole is spent.
        OSError, ValueError: see `race`.
    """
    sock = None
    try:
        async with within(trail, Phase.CONNECT, f"{len(addresses)} addresses") as phase:
            sock = await race(addresses, trail=trail, until=phase.until, options=options)
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return sock


async def race(
    addresses: Sequence[Address], *, trail: Trail, until: Instant, options: SocketOptions
) -> socket.socket:
    """A connected, non-blocking socket.

    Args:
        addresses: at least one.
        trail: is told of every address.
        until: monotonic instant by which the caller gives up, by cancelling; only the pace is
            derived from it.
        options: of the sockets.

    Raises:
        OSError: no address could be connected. Its number is the most telling one, its text names
            every address with its error.
        ValueError: there are no addresses.
    """
    if not addresses:
        raise ValueError(f"there is no address of {trail.target} to connect to")
    run = _Race(interleaved(addresses), trail, until, options)
    try:
        run.next()
        return await run.winner
    except BaseException:
        run.give_up("timeout" if until <= run.now() else "cancelled")
        run.drop_winner()
        raise
    finally:
        run.give_up("cancelled")


class _Race:
    def __init__(
        self, addresses: list[Address], trail: Trail, until: Instant, options: SocketOptions
    ) -> None:
        self._driver = driver_of(asyncio.get_running_loop())
        self.now = self._driver.now
        self.winner: asyncio.Future[socket.socket] = self._driver.loop.create_future()
        self._waiting = deque(addresses)
        self._running: dict[socket.socket, tuple[Address, Instant]] = {}
        self._errors: list[tuple[Address, int]] = []
        self._trail = trail
        self._options = options
        self._delay = paced(options.attempt_delay, len(addresses), until - self.now())
        self._alarm: Alarm | None = None

    def next(self) -> None:
        """Try the next address beside those that are being tried; further ones while they fail."""
        self._drop_alarm()
        try:
            while self._waiting and not self.winner.done():
                if self._try(self._waiting.popleft()):
                    break
        except Exception as exc:
            # A callback of the loop has nobody to raise to, and somebody waits for the winner.
            if not self.winner.done():
                self.winner.set_exception(exc)
        if not self._running and not self._waiting and not self.winner.done():
            self.winner.set_exception(failed(self._trail.target, self._errors))

    def _try(self, address: Address) -> bool:
        """Whether the address is on its way, so that the next one has time."""
        began = self.now()
        sock, number = begun(address, self._options)
        if sock is None or number == 0:
            self._over(sock, address, began, number)
            return False
        self._running[sock] = (address, began)
        self._driver.loop.add_writer(sock.fileno(), self._ready, sock)
        if self._waiting and self._delay != NEVER:
            self._alarm = self._driver.alarm(began + self._delay, self.next)
        return True

    def _ready(self, sock: socket.socket) -> None:
        self._driver.loop.remove_writer(sock.fileno())
        address, began = self._running.pop(sock)
        self._over(sock, address, began, verdict(sock))
        self.next()

    def _over(
        self, sock: socket.socket | None, address: Address, began: Instant, number: int
    ) -> None:
        won = number == 0 and not self.winner.done()
        told = os.strerror(number).lower() if number else "connected"
        self._trail.tried(str(address), began, self.now(), told)
        if won and sock is not None:
            self.winner.set_result(sock)
            return
        if sock is not None:
            sock.close()
        if number:
            self._errors.append((address, number))

    def give_up(self, why: str) -> None:
        """Close every socket but the winner's."""
        self._drop_alarm()
        self._waiting.clear()
        running, self._running = self._running, {}
        for sock, (address, began) in running.items():
            self._driver.loop.remove_writer(sock.fileno())
            sock.close()
            self._trail.tried(str(address), began, self.now(), why)

    def drop_winner(self) -> None:
        """Close the winner's socket: it arrived in the same turn as the cancellation."""
        if not self.winner.done():
            self.winner.cancel()
        elif not self.winner.cancelled() and self.winner.exception() is None:
            self.winner.result().close()

    def _drop_alarm(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            self._driver.drop(alarm)
