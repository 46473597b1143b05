"""Connecting to the first of several addresses that answers (RFC 8305, "happy eyeballs").

Our own, and not aiohappyeyeballs: the library stands on nothing but Python; every address is to be
in the record of the call with its time; and the pace follows the share that connecting has. It
works with callbacks alone: there is no task per address whose end would have to be waited for, so a
race that is cancelled has closed every socket before the next turn of the loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence

from holdfast.domain.instant import Instant
from holdfast.domain.phases import Trail
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net.attempt import SocketOptions, begun, failed, paced, verdict
from holdfast.runtime.net.resolver import Address
from holdfast.runtime.timers import Alarm

__all__ = ["interleaved", "race"]


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Addresses of the two families in turn, that of the first one first."""
    first = [a for a in addresses if a.family == addresses[0].family]
    other = [a for a in addresses if a.family != addresses[0].family]
    mixed: list[Address] = []
    while first or other:
        mixed += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return mixed


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
        OSError: no address could be connected.
    """
    run = _Race(interleaved(addresses), trail, until, options)
    try:
        run.next()
        return await run.winner
    except asyncio.CancelledError:
        run.give_up("timeout" if until <= run.now() else "cancelled")
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
        self._waiting = addresses
        self._running: dict[socket.socket, tuple[Address, Instant]] = {}
        self._errors: list[tuple[Address, int]] = []
        self._trail = trail
        self._options = options
        self._delay = paced(options.attempt_delay, len(addresses), until - self.now())
        self._alarm: Alarm | None = None

    def next(self) -> None:
        """Try the next address beside those that are being tried."""
        self._drop_alarm()
        if not self._waiting or self.winner.done():
            return
        address = self._waiting.pop(0)
        began = self.now()
        sock, number = begun(address, self._options)
        if number == errno.EINPROGRESS:
            self._running[sock] = (address, began)
            self._driver.loop.add_writer(sock.fileno(), self._ready, sock)
            if self._waiting:
                self._alarm = self._driver.alarm(began + self._delay, self.next)
        else:
            self._over(sock, address, began, number)

    def _ready(self, sock: socket.socket) -> None:
        self._driver.loop.remove_writer(sock.fileno())
        address, began = self._running.pop(sock)
        self._over(sock, address, began, verdict(sock))

    def _over(self, sock: socket.socket, address: Address, began: Instant, number: int) -> None:
        told = os.strerror(number).lower() if number else "connected"
        self._trail.tried(str(address), began, self.now(), told)
        if number == 0:
            if self.winner.done():
                sock.close()
            else:
                self.winner.set_result(sock)
            return
        sock.close()
        self._errors.append((address, number))
        if self._waiting:
            self.next()
        elif not self._running and not self.winner.done():
            self.winner.set_exception(failed(self._trail.target, self._errors))

    def give_up(self, why: str) -> None:
        """Close every socket but the winner's."""
        self._drop_alarm()
        self._waiting.clear()
        running, self._running = self._running, {}
        for sock, (address, began) in running.items():
            self._driver.loop.remove_writer(sock.fileno())
            sock.close()
            self._trail.tried(str(address), began, self.now(), why)
        if self.winner.cancelled() or not self.winner.done():
            self.winner.cancel()

    def _drop_alarm(self) -> None:
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            self._driver.drop(alarm)
