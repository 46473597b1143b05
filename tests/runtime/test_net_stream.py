"""Streams: deadlines that move, bytes that stay, connections that are gone when they should be."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

import holdfast
from holdfast.domain.errors import LimitExceeded, StreamTimeout, UsageError
from holdfast.domain.faults import Fault, classify
from holdfast.domain.instant import NEVER
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.stream import Stream

pytestmark = pytest.mark.real_time("asyncio", "uvloop")

ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""


@asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[Stream, socket.socket]]:
    """A stream, and the socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        near.setblocking(False)
        far, _ = listener.accept()
        far.setblocking(False)
        stream = await Stream.over(near, **options)
        try:
            yield stream, far
        finally:
            stream.abort()
            await stream.aclose()
            far.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def at_rest() -> int:
    """How many descriptors are open; those included that a loop opens with its first connection."""
    async with pair() as (stream, far):
        far.send(b"x")
        await stream.read()
    return descriptors()


async def closed_down_to(before: int) -> None:
    # uvloop closes what was given to it in the next turn but one.
    for _ in range(3):
        if descriptors() > before:
            await asyncio.sleep(0)
    assert descriptors() <= before


def all_that_came(far: socket.socket) -> int:
    size = 0
    while part := far.recv(2**20):
        size += len(part)
    return size


async def told_of_the_end(far: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, 10), ENDED)


# -- reading and writing ---------------------------------------------------------------------------


async def test_reads_of_all_kinds() -> None:
    async with pair() as (stream, far):
        far.send(b"line\r\n0123456789rest")
        assert await stream.readuntil(b"\r\n") == b"line\r\n"
        assert await stream.readexactly(4) == b"0123"
        assert await stream.read(2) == b"45"
        stream.unread(b"45")
        assert await stream.read(6) == b"456789"
        assert stream.readable
        assert await stream.read() == b"rest"
        assert not stream.readable
        far.close()
        assert await stream.read() == b""
        assert stream.at_eof()
        assert stream.received == 20


async def test_an_end_that_comes_too_early() -> None:
    async with pair() as (stream, far):
        far.send(b"half")
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await stream.readexactly(10)
        assert caught.value.partial == b"half"
        with pytest.raises(asyncio.IncompleteReadError):
            await stream.readuntil(b"\n")


async def test_a_line_without_an_end_is_refused_and_kept() -> None:
    async with pair() as (stream, far):
        far.send(b"x" * 100)
        with pytest.raises(LimitExceeded, match="50 bytes"):
            await stream.readuntil(b"\n", 50)
        assert await stream.readexactly(100) == b"x" * 100


async def test_much_is_sent_and_received_without_being_piled_up() -> None:
    body = random.Random(1).randbytes(8 * 2**20)
    async with pair() as (stream, far):

        async def drain() -> bytes:
            loop = asyncio.get_running_loop()
            whole = bytearray()
            while len(whole) < len(body):
                whole += await loop.sock_recv(far, 2**20)
            return bytes(whole)

        async def feed() -> None:
            await asyncio.get_running_loop().sock_sendall(far, body)

        draining, feeding = asyncio.ensure_future(drain()), asyncio.ensure_future(feed())
        await stream.write(body)
        assert await draining == body
        assert stream.sent == len(body)
        await asyncio.sleep(0.05)
        assert not feeding.done()  # it is held back, since nobody reads
        assert stream.received < 2 * 2**20
        assert await stream.readexactly(len(body)) == body
        await feeding


async def test_two_readers_and_two_writers_get_a_clear_error_and_lose_nothing() -> None:
    async with pair() as (stream, far):
        first = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        for call in (stream.read, lambda: stream.readexactly(1), stream.readuntil):
            with pytest.raises(UsageError, match="two tasks read"):
                await call()
        far.send(b"whole")
        assert await first == b"whole"
        big = asyncio.ensure_future(stream.write(b"x" * 32 * 2**20))
        await asyncio.sleep(0.01)
        with pytest.raises(UsageError, match="two tasks write"):
            await stream.write(b"y")
        big.cancel()
        await asyncio.wait([big])


async def test_a_read_that_is_cancelled_loses_no_byte() -> None:
    async with pair() as (stream, far):
        for number in range(50):
            reading = asyncio.ensure_future(stream.readexactly(4))
            await asyncio.sleep(0)
            far.send(b"%02d" % number)
            await asyncio.sleep(0.001 * (number % 3))
            reading.cancel()
            far.send(b"ab")
            with contextlib.suppress(asyncio.CancelledError):
                assert await reading == b"%02dab" % number
                continue
            assert await stream.readexactly(4) == b"%02dab" % number


# -- deadlines -------------------------------------------------------------------------------------


async def test_a_deadline_that_has_passed_and_is_moved_later() -> None:
    async with pair() as (stream, far):
        stream.set_read_deadline(monotonic() + 0.03)
        far.send(b"ab")
        with pytest.raises(StreamTimeout) as caught:
            await stream.readexactly(4)
        assert (caught.value.what, caught.value.moved) == ("read", 2)
        assert "2 bytes moved" in str(caught.value)
        assert classify(caught.value) is Fault.TIMED_OUT
        with pytest.raises(StreamTimeout):
            await stream.readexactly(4)  # still past
        stream.set_read_deadline(NEVER)
        far.send(b"cd")
        assert await stream.readexactly(4) == b"abcd"


async def test_never_before_the_deadline() -> None:
    # uvloop's timers fire up to a millisecond early.
    async with pair() as (stream, _):
        for _ in range(60):
            at = monotonic() + 0.0021
            stream.set_read_deadline(at)
            with pytest.raises(StreamTimeout):
                await stream.read()
            assert monotonic() >= at


async def test_a_task_that_waits_follows_a_deadline_set_by_another() -> None:
    async with pair() as (stream, far):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0.01)
        stream.set_read_deadline(monotonic() + 30)
        stream.set_read_deadline(monotonic() - 1)  # past: at once
        with pytest.raises(StreamTimeout):
            await asyncio.wait_for(reading, ENDED)
        stream.set_deadline(monotonic() + 0.02)
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        stream.set_deadline(NEVER)  # later, before it passed
        await asyncio.sleep(0.05)
        assert not reading.done()
        far.send(b"x")
        assert await reading == b"x"


async def test_a_deadline_set_from_a_thread_wakes_a_read() -> None:
    async with pair() as (stream, _):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        thread = threading.Thread(target=lambda: stream.set_read_deadline(monotonic()))
        thread.start()
        with pytest.raises(StreamTimeout):
            await asyncio.wait_for(reading, ENDED)
        thread.join()


async def test_several_tasks_set_deadlines_at_once_and_the_last_one_counts() -> None:
    async with pair() as (stream, _):
        reading = asyncio.ensure_future(stream.read())

        async def setter(number: int) -> None:
            for _ in range(20):
                stream.set_read_deadline(monotonic() + 10 + number)
                await asyncio.sleep(0)

        await asyncio.gather(*[setter(number) for number in range(10)])
        assert not reading.done()
        stream.set_read_deadline(monotonic() + 0.01)
        with pytest.raises(StreamTimeout):
            await asyncio.wait_for(reading, ENDED)


async def test_what_has_arrived_wins_over_a_deadline() -> None:
    # The loop is held up until after the deadline; the bytes came before it.
    async with pair() as (stream, far):
        stream.set_read_deadline(monotonic() + 0.05)
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        far.send(b"in time")
        time.sleep(0.1)  # noqa: ASYNC251 - on purpose
        assert await reading == b"in time"
        far.send(b"and already there")
        await asyncio.sleep(0.01)
        stream.set_read_deadline(monotonic() - 1)
        assert await stream.read() == b"and already there"


async def test_a_write_that_stalls_ends_and_its_connection_is_reset() -> None:
    before = await at_rest()
    async with pair() as (stream, far):
        stream.set_write_deadline(monotonic() + 0.05)
        with pytest.raises(StreamTimeout) as caught:
            await stream.write(b"x" * 32 * 2**20)
        assert caught.value.what == "write"
        assert 0 < stream.sent < 32 * 2**20
        async with asyncio.timeout(ENDED):
            await stream.aclose()
        with pytest.raises(ConnectionResetError):
            all_that_came(far)
    await closed_down_to(before)


async def test_a_read_deadline_does_not_touch_the_other_direction() -> None:
    async with pair() as (stream, far):
        stream.set_read_deadline(monotonic() - 1)
        with pytest.raises(StreamTimeout):
            await stream.read()
        await stream.write(b"hello")
        assert await told_of_the_end(far) == b"hello"


# -- half-closed, aborted, broken ------------------------------------------------------------------


async def test_a_half_closed_peer_can_be_waited_for_and_left() -> None:
    async with pair() as (stream, far):
        await stream.write_eof()
        assert await told_of_the_end(far) == b""
        far.send(b"still here")
        assert await stream.read() == b"still here"
        stream.set_read_deadline(monotonic() + 0.02)
        with pytest.raises(StreamTimeout):
            await stream.read()  # FIN_WAIT2: the kernel has no timer while the descriptor is open
        async with asyncio.timeout(ENDED):
            await stream.aclose()


async def test_a_peer_that_lingers_after_our_end_is_left_in_time() -> None:
    async with pair() as (stream, far):
        far.send(b"x")
        await stream.write_eof(linger=0.03)
        assert await stream.read() == b"x"
        with pytest.raises((ConnectionAbortedError, StreamTimeout)):
            await asyncio.wait_for(stream.read(), ENDED)
        assert stream.closed


async def test_the_peer_ends_its_direction_and_is_still_written_to() -> None:
    async with pair() as (stream, far):
        far.shutdown(socket.SHUT_WR)
        assert await stream.read() == b""
        await stream.write(b"answer")
        assert await told_of_the_end(far) == b"answer"


async def test_a_forced_break_comes_whatever_is_going_on() -> None:
    at = monotonic() + 0.05
    async with pair(forced_break=at) as (stream, far):
        reading = asyncio.ensure_future(stream.read())
        with pytest.raises(StreamTimeout) as caught:
            await asyncio.wait_for(reading, ENDED)
        assert caught.value.what == "forced break"
        assert monotonic() >= at
        with pytest.raises(StreamTimeout):
            await stream.write(b"x")
        assert await told_of_the_end(far) == b""
    async with pair(forced_break=monotonic() + 0.02) as (stream, far):
        assert await told_of_the_end(far) == b""  # also with nobody reading
        assert stream.closed


async def test_a_stream_that_is_closed_wakes_whoever_waits() -> None:
    async with pair() as (stream, _):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(ConnectionAbortedError):
            await reading
        with pytest.raises(ConnectionAbortedError):
            await stream.write(b"x")
        await stream.aclose()  # once more does no harm
        stream.abort()


async def test_a_reset_is_one() -> None:
    async with pair() as (stream, far):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(ConnectionResetError) as caught:
            await reading
        assert caught.value.errno == errno.ECONNRESET
    async with pair() as (stream, far):
        stream.abort(reset=True)
        with pytest.raises(ConnectionResetError):
            await told_of_the_end(far)


async def test_a_deadline_around_a_read_ends_it_and_the_stream_serves_on() -> None:
    async with pair() as (stream, far):
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.03):
                await stream.read()
        far.send(b"later")
        assert await stream.read() == b"later"


async def test_numbers_of_descriptors_that_are_given_out_again_are_never_touched() -> None:
    # Streams with deadlines that are about to pass are closed, and their numbers reused at once.
    before = await at_rest()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        listener.setblocking(False)
        for turn in range(300):
            near = socket.create_connection(listener.getsockname())
            near.setblocking(False)
            far, _ = listener.accept()
            stream = await Stream.over(near, forced_break=monotonic() + 0.002)
            stream.set_deadline(monotonic() + 0.002)
            reading = asyncio.ensure_future(stream.read())
            await asyncio.sleep(0)
            stream.abort()
            with contextlib.suppress(OSError, StreamTimeout):
                await reading
            await stream.aclose()
            far.close()
            again, other = socket.socketpair()
            await asyncio.sleep(0.003 if turn % 10 == 0 else 0)
            assert again.send(b"alive") == 5
            assert other.recv(5) == b"alive"
            again.close()
            other.close()
    await closed_down_to(before)


# -- TLS -------------------------------------------------------------------------------------------


class Secure:
    """Contexts of both sides."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@pytest.fixture(scope="module", name="secure")
def contexts() -> Secure:
    return Secure()


async def test_tls_both_ways(secure: Secure) -> None:
    async with pair() as (stream, far):
        other = asyncio.ensure_future(Stream.over(far))
        there = await other
        serving = asyncio.ensure_future(there.start_tls(secure.server, server_side=True))
        await stream.start_tls(secure.client, "localhost")
        await serving
        body = random.Random(2).randbytes(2**20)
        writing = asyncio.ensure_future(stream.write(body))
        assert await there.readexactly(len(body)) == body
        await writing
        assert stream.get_extra_info("ssl_object") is not None
        with pytest.raises(UsageError, match="one direction"):
            await stream.write_eof()
        stream.set_read_deadline(monotonic() + 0.02)
        with pytest.raises(StreamTimeout):
            await stream.read()
        await there.aclose()


async def test_a_handshake_that_is_given_up_closes_the_socket_in_that_turn(secure: Secure) -> None:
    before = await at_rest()
    async with pair() as (stream, far):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await stream.start_tls(secure.client, "localhost")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stream.closed
        while await told_of_the_end(far):
            pass  # the first half of the handshake, and then the end
    await closed_down_to(before)


async def test_a_certificate_for_somebody_else(secure: Secure) -> None:
    async with pair() as (stream, far):
        there = await Stream.over(far)
        serving = asyncio.ensure_future(there.start_tls(secure.server, server_side=True))
        with pytest.raises(ssl.SSLCertVerificationError):
            await stream.start_tls(secure.client, "elsewhere.example")
        await asyncio.wait([serving])
        serving.exception()
        there.abort()
        await there.aclose()


async def test_plain_bytes_before_a_handshake_are_refused(secure: Secure) -> None:
    async with pair() as (stream, far):
        far.send(b"injected")
        await asyncio.sleep(0.02)
        with pytest.raises(UsageError, match="plain bytes"):
            await stream.start_tls(secure.client, "localhost")
        assert stream.closed


async def test_a_peer_without_a_goodbye_holds_the_close_for_a_second_at_most(
    secure: Secure,
) -> None:
    async with pair() as (stream, far):
        ready = threading.Event()
        over = threading.Event()
        far.setblocking(True)

        def serve() -> None:
            there = secure.server.wrap_socket(far, server_side=True, suppress_ragged_eofs=True)
            ready.set()
            over.wait(20)
            there.close()

        thread = threading.Thread(target=serve)
        thread.start()
        await stream.start_tls(secure.client, "localhost")
        await asyncio.to_thread(ready.wait, ENDED)
        began = monotonic()
        await stream.aclose()
        assert monotonic() - began < ENDED
        over.set()
        await asyncio.to_thread(thread.join)
