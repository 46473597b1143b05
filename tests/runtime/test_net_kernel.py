"""Time-outs of the kernel: set, read back, told apart, and why they are not enough."""

from __future__ import annotations

import errno
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from holdfast.domain.faults import Fault, classify
from holdfast.domain.instant import NEVER
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.blocking import BoundSocket, within_limit
from holdfast.runtime.net.kernel import (
    INTERRUPTIONS,
    Whose,
    bound_by_kernel,
    kernel_bounds,
    persevere,
    whose_timeout,
)
from tests.runtime.peering import ENDED, drip, full_queue, peer, silent

JIFFY = 0.011
"""Seconds: the kernel keeps these in ticks, of 10 ms where they are longest."""


def test_what_is_set_is_there() -> None:
    with socket.socket() as sock:
        assert kernel_bounds(sock) == (NEVER, NEVER, NEVER)
        bound_by_kernel(sock, 2.25)
        receive, send, user = kernel_bounds(sock)
        assert receive == pytest.approx(2.25, abs=JIFFY)
        assert send == pytest.approx(2.25, abs=JIFFY)
        assert user == 2.25
        bound_by_kernel(sock, NEVER)
        assert kernel_bounds(sock) == (NEVER, NEVER, NEVER)


@pytest.mark.parametrize("left", [0.0, -1.0, 1e-9])
def test_what_is_spent_is_not_for_ever(left: float) -> None:
    # Zero means "no limit" to the kernel.
    with socket.socket() as sock:
        bound_by_kernel(sock, left)
        assert all(0 < bound <= JIFFY for bound in kernel_bounds(sock))


def test_the_longest_that_the_kernel_can_keep() -> None:
    with socket.socket() as sock:
        bound_by_kernel(sock, 1e12)
        assert all(2e6 < bound < NEVER for bound in kernel_bounds(sock))
        with pytest.raises(ValueError, match="nan"):
            bound_by_kernel(sock, math.nan)


def test_a_unix_socket_has_no_time_out_of_tcp() -> None:
    left, right = socket.socketpair()
    with left, right:
        bound_by_kernel(left, 0.5)
        assert kernel_bounds(left)[2] == NEVER
        bound_by_kernel(left, 0.05)
        with pytest.raises(BlockingIOError) as caught:
            left.recv(1)
    assert whose_timeout(caught.value) is Whose.SOCKET


def test_a_blocking_read_and_a_blocking_connect_end() -> None:
    with peer(silent) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        bound_by_kernel(sock, 0.1)
        began = monotonic()
        with pytest.raises(BlockingIOError) as read:
            sock.recv(1)
        assert 0.09 <= monotonic() - began < ENDED
    assert whose_timeout(read.value) is Whose.SOCKET
    with full_queue() as port, socket.socket() as sock:
        bound_by_kernel(sock, 0.1)
        with pytest.raises(BlockingIOError) as connect:
            sock.connect(("127.0.0.1", port))
    assert whose_timeout(connect.value) is Whose.SOCKET


def test_the_kernel_gives_up_on_a_peer() -> None:
    with full_queue() as port, socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)
        with pytest.raises(TimeoutError) as caught:
            sock.connect(("127.0.0.1", port))
    assert caught.value.errno == errno.ETIMEDOUT
    assert whose_timeout(caught.value) is Whose.KERNEL
    assert classify(caught.value) is Fault.SYSTEM


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (TimeoutError("timed out"), Whose.LIMIT),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), Whose.KERNEL),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), Whose.SOCKET),
        (BlockingIOError(errno.EINPROGRESS, "Operation now in progress"), Whose.SOCKET),
        (BlockingIOError(errno.EALREADY, "Operation already in progress"), None),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
        (ValueError("timed out"), None),
    ],
)
def test_whose_time_out_it_is(error: Exception, whose: Whose | None) -> None:
    assert whose_timeout(error) is whose
    if whose is Whose.LIMIT:
        assert classify(error) is Fault.TIMED_OUT


def test_errors_of_a_socket_are_known_by_the_table() -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert classify(reset) is Fault.RESET
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    assert classify(refused) is Fault.REFUSED
    assert classify(InterruptedError(errno.EINTR, "interrupted")) is Fault.SYSTEM


# -- interrupted calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("times", range(INTERRUPTIONS + 1))
def test_an_interrupted_call_is_made_again(times: int) -> None:
    left = [InterruptedError(errno.EINTR, "interrupted")] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "done"

    assert persevere(call) == "done"


def test_but_not_for_ever() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise InterruptedError(errno.EINTR, "interrupted")

    with pytest.raises(InterruptedError, match="4 times in a row") as caught:
        persevere(call)
    assert len(calls) == INTERRUPTIONS + 1
    assert caught.value.errno == errno.EINTR


@contextmanager
def storm(seconds: float, every: float) -> Iterator[None]:
    """Signals for this thread, one `every` so many seconds."""
    here = threading.get_ident()
    calm = threading.Event()

    def blow() -> None:
        until = monotonic() + seconds
        while monotonic() < until and not calm.wait(every):
            signal.pthread_kill(here, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    wind = threading.Thread(target=blow)
    wind.start()
    try:
        yield
    finally:
        calm.set()
        wind.join()
        signal.signal(signal.SIGUSR1, before)


def test_signals_prolong_a_time_out_of_the_kernel_and_none_of_ours() -> None:
    # Each signal has Python make the call again (PEP 475), and the kernel then starts anew.
    with peer(silent) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        bound_by_kernel(sock, 0.3)
        with storm(1.2, 0.1):
            began = monotonic()
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            took = monotonic() - began
        assert took > 1.0
    with peer(silent) as server:
        sock = BoundSocket(socket.create_connection(("127.0.0.1", server.port)))
        with sock, storm(60.0, 0.01):
            began = monotonic()
            with within_limit(began + 0.3), pytest.raises(TimeoutError) as caught:
                sock.recv(1)
            assert 0.29 <= monotonic() - began < ENDED
        assert whose_timeout(caught.value) is Whose.LIMIT


def test_a_handler_that_raises_gets_through() -> None:
    class Stop(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stop

    here = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, stop)
    alarm = threading.Timer(0.05, signal.pthread_kill, [here, signal.SIGUSR1])
    try:
        with peer(drip) as server:
            sock = BoundSocket(socket.create_connection(("127.0.0.1", server.port)))
            alarm.start()
            with sock, pytest.raises(Stop):
                all(iter(lambda: sock.recv(1), b""))
    finally:
        alarm.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_limit_that_moves_bounds_the_next_wait() -> None:
    with peer(silent) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        for left in (0.2, 0.1):
            began = time.monotonic()
            bound_by_kernel(sock, left)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            assert left - JIFFY <= time.monotonic() - began < ENDED
