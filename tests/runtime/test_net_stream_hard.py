"""Streams in bad moments: a loop held up, a cancellation anywhere, a peer that takes its time."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import holdfast
from holdfast.domain.errors import LimitExceeded, StreamTimeout, UsageError
from holdfast.domain.instant import NEVER
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.stream import Stream
from tests.runtime.dialling import contexts
from tests.runtime.peering import ENDED, descriptors

pytestmark = pytest.mark.real_time("asyncio", "uvloop")

LARGE = 2 * 2**20
"""Bytes, far more than a stream keeps for a reader who does not come."""
HELD_UP = 0.25
"""Seconds for which the loop is blocked."""


@asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[Stream, socket.socket]]:
    """A stream, and the non-blocking socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        near.setblocking(False)
        far, _ = listener.accept()
        far.setblocking(False)
    with far:
        stream = await Stream.over(near, **options)
        try:
            yield stream, far
        finally:
            stream.abort()
            await stream.aclose()


@asynccontextmanager
async def secure_pair() -> AsyncIterator[tuple[Stream, Stream]]:
    """Two streams that speak TLS with one another."""
    async with pair() as (here, far):
        there = await Stream.over(far.dup())
        await asyncio.gather(
            there.start_tls(contexts()[0], server_side=True),
            here.start_tls(contexts()[1], "orders.test"),
        )
        try:
            yield here, there
        finally:
            there.abort()
            await there.aclose()


async def at_rest() -> int:
    """How many descriptors are open; those included that a loop opens with its first connection."""
    async with pair() as (stream, far):
        far.send(b"x")
        await stream.read()
    return descriptors()


async def swallow(far: socket.socket, size: int) -> bytes:
    whole = bytearray()
    while len(whole) < size:
        part = await asyncio.get_running_loop().sock_recv(far, 2**20)
        if not part:
            break
        whole += part
    return bytes(whole)


def hold_up(seconds: float = HELD_UP) -> None:
    time.sleep(seconds)


async def stalled(stream: Stream) -> asyncio.Task[None]:
    """A write of `LARGE` four times that goes on no more."""
    writing = asyncio.ensure_future(stream.write(bytes(4 * LARGE)))
    before = -1
    while stream.sent != before or not before:
        before = stream.sent
        await asyncio.sleep(0.02)
    return writing


async def stalled_and_left(stream: Stream) -> None:
    """The kernel takes nothing any more, and nobody waits for it."""
    writing = await stalled(stream)
    writing.cancel()
    await asyncio.wait([writing])


# -- what has arrived wins -------------------------------------------------------------------------


@pytest.mark.parametrize("read", [Stream.read, lambda s: s.readexactly(7), Stream.readuntil])
async def test_what_came_while_the_loop_was_held_up_wins(
    read: Callable[[Stream], Awaitable[bytes]],
) -> None:
    async with pair() as (stream, far):
        reading = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0)
        stream.set_read_deadline(monotonic() + HELD_UP / 5)
        far.send(b"intime\n")
        hold_up()
        assert await reading == b"intime\n"


async def test_what_is_in_the_kernel_wins_over_a_deadline_that_had_passed_before_the_read() -> None:
    async with pair() as (stream, far):
        stream.set_read_deadline(monotonic() - 1)
        for _ in range(50):
            far.send(b"x")  # and the loop has had no turn to see it
            assert await stream.read() == b"x"
        with pytest.raises(StreamTimeout):
            await stream.read()


async def test_an_end_that_came_in_time_wins_too() -> None:
    async with pair() as (stream, far):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        stream.set_read_deadline(monotonic() + 0.02)
        far.shutdown(socket.SHUT_WR)
        hold_up(0.06)
        assert await reading == b""


async def test_much_that_came_while_the_loop_was_held_up_is_read_to_its_last_byte() -> None:
    async with pair() as (stream, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE)
        size = far.send(bytes(LARGE))
        reading = asyncio.ensure_future(stream.readexactly(size))
        stream.set_read_deadline(monotonic() - 1)
        assert len(await reading) == size


async def test_room_that_came_while_the_loop_was_held_up_wins_too() -> None:
    async with pair() as (stream, far):
        writing = await stalled(stream)
        stream.set_write_deadline(monotonic() + HELD_UP / 5)
        far.setblocking(True)
        taking = threading.Thread(target=swallow_all, args=[far])
        taking.start()
        hold_up()
        await asyncio.sleep(0)
        stream.set_write_deadline(NEVER)
        await writing
        assert stream.sent == 4 * LARGE
        stream.abort()
        await asyncio.to_thread(taking.join)


def swallow_all(far: socket.socket) -> None:
    while far.recv(2**20):
        pass


async def test_over_tls_what_has_arrived_wins() -> None:
    async with secure_pair() as (here, there):
        reading = asyncio.ensure_future(here.read())
        await asyncio.sleep(0)
        await there.write(b"in time")
        here.set_read_deadline(monotonic() + 0.02)
        hold_up(0.06)
        assert await reading == b"in time"


# -- both at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_cancellation_wins_over_a_deadline_in_the_same_turn(cancel_first: bool) -> None:
    async with pair() as (stream, far):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        if cancel_first:
            reading.cancel()
            stream.set_read_deadline(monotonic() - 1)
        else:
            # Called right after the read was told of its end, and before its task runs.
            stream.set_read_deadline(monotonic() - 1)
            asyncio.get_running_loop().call_soon(reading.cancel)
        with pytest.raises(asyncio.CancelledError):
            await reading
        stream.set_read_deadline(NEVER)
        far.send(b"nothing is lost")
        assert await stream.read() == b"nothing is lost"


async def test_a_deadline_that_is_moved_in_the_turn_in_which_it_passes_counts_no_more() -> None:
    async with pair() as (stream, far):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        stream.set_read_deadline(monotonic() - 1)
        asyncio.get_running_loop().call_soon(stream.set_read_deadline, NEVER)
        await asyncio.sleep(0.01)
        assert not reading.done()
        far.send(b"later")
        assert await reading == b"later"


async def test_random_deadlines_cancellations_and_bytes_lose_nothing() -> None:
    dice = random.Random(7)
    body = bytes(dice.randbytes(200_000))
    async with pair() as (stream, far):

        async def send() -> None:
            at = 0
            while at < len(body):
                size = dice.randint(1, 4000)
                at += far.send(body[at : at + size])
                await asyncio.sleep(dice.choice((0, 0, 0.001)))
            far.shutdown(socket.SHUT_WR)

        sending = asyncio.ensure_future(send())
        got = bytearray()
        while not stream.at_eof():
            stream.set_read_deadline(monotonic() + dice.choice((-1, 0, 0.0005, 1)))
            size = dice.randint(1, 3000)
            try:
                async with asyncio.timeout(dice.choice((0, 0.0005, None))):
                    if dice.random() < 0.5:
                        got += await stream.read(size)
                    else:
                        got += await stream.readexactly(size)
            except asyncio.IncompleteReadError as exc:
                got += exc.partial
            except TimeoutError:
                await asyncio.sleep(0)
        await sending
        assert bytes(got) == body


# -- more than is kept -----------------------------------------------------------------------------


async def test_a_large_read_is_not_held_back_by_what_is_kept() -> None:
    body = random.Random(3).randbytes(LARGE)
    async with pair() as (stream, far):
        for read in (
            stream.readexactly(len(body)),
            stream.readuntil(b"\nthe end\n", LARGE + 100),
        ):
            sending = asyncio.ensure_future(
                asyncio.get_running_loop().sock_sendall(far, body + b"\nthe end\n")
            )
            got = await asyncio.wait_for(read, ENDED)
            assert got.startswith(body)
            await sending
            if got == body:
                assert await stream.readexactly(9) == b"\nthe end\n"


async def test_a_large_read_over_tls() -> None:
    body = random.Random(4).randbytes(8 * LARGE)
    async with secure_pair() as (here, there):
        writing = asyncio.ensure_future(there.write(body))
        await asyncio.sleep(0.05)
        assert not writing.done()  # held back, since nobody reads
        assert await asyncio.wait_for(here.readexactly(len(body)), ENDED) == body
        await writing
        assert there.sent == len(body)


async def test_odd_sizes_and_separators() -> None:
    async with pair() as (stream, far):
        assert await stream.read(0) == await stream.readexactly(0) == b""
        with pytest.raises(ValueError, match="-1 bytes"):
            await stream.read(-1)
        with pytest.raises(ValueError, match="-1 bytes"):
            await stream.readexactly(-1)
        with pytest.raises(ValueError, match="separator"):
            await stream.readuntil(b"")
        with pytest.raises(ValueError, match="nan"):
            stream.set_deadline(float("nan"))
        with pytest.raises(TypeError, match="'3s'"):
            stream.set_deadline("3s")  # type: ignore[arg-type]
        far.send(b"1234\r\n")
        assert await stream.readuntil(b"\r\n", 6) == b"1234\r\n"
        far.send(b"1234\r\n")
        with pytest.raises(LimitExceeded):
            await stream.readuntil(b"\r\n", 5)
        reading = asyncio.ensure_future(stream.readexactly(100))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="at once"):
            stream.unread(b"x")  # where would it belong?
        reading.cancel()
        await asyncio.wait([reading])
        stream.unread(b"0")
        assert await stream.readexactly(7) == b"01234\r\n"


# -- writes ----------------------------------------------------------------------------------------


async def test_a_write_goes_on_where_its_deadline_has_stopped_it() -> None:
    body = random.Random(5).randbytes(4 * LARGE)
    async with pair() as (stream, far):
        stream.set_write_deadline(monotonic() + 0.02)
        with pytest.raises(StreamTimeout) as caught:
            await stream.write(body)
        assert 0 < caught.value.moved < len(body)
        stream.set_write_deadline(NEVER)
        swallowing = asyncio.ensure_future(swallow(far, len(body)))
        await stream.write(body[caught.value.moved :])
        assert await swallowing == body
        assert stream.sent == len(body)
        await stream.aclose()
        assert await asyncio.get_running_loop().sock_recv(far, 1) == b""  # an end, and no reset


async def test_what_is_written_may_be_changed_once_the_write_has_ended() -> None:
    body = bytearray(4 * LARGE)
    async with pair() as (stream, far):
        stream.set_write_deadline(monotonic() + 0.02)
        with pytest.raises(StreamTimeout) as caught:
            await stream.write(body)
        moved = caught.value.moved
        body[:] = b"!" * 100  # not resized in vain, and not seen by the peer
        swallowing = asyncio.ensure_future(swallow(far, moved))
        assert await swallowing == bytes(moved)


async def test_after_a_write_the_kernel_has_it_all() -> None:
    async with pair() as (stream, _):
        done = 0
        try:
            while done < 64 * LARGE:
                async with asyncio.timeout(0.05):
                    await stream.write(bytes(10_000))
                done += 10_000
        except TimeoutError:
            # No copy is kept that the peer would not get when the connection is aborted now.
            assert done <= stream.sent < done + 10_000
        assert 0 < done < 64 * LARGE


async def test_what_was_not_sent_is_not_counted() -> None:
    async with pair() as (stream, far):
        await stalled_and_left(stream)
        before = stream.sent
        await stream.aclose()
        assert stream.sent == before
        assert 0 < before < 4 * LARGE
        assert far.fileno() >= 0


async def test_after_the_end_of_writing_nothing_is_written() -> None:
    async with pair() as (stream, _):
        await stream.write_eof()
        with pytest.raises(UsageError, match="write_eof"):
            await stream.write(b"x")
    async with pair() as (stream, _):
        writing = await stalled(stream)
        with pytest.raises(UsageError, match="at once"):
            await stream.write_eof()  # it would cut the other task short
        writing.cancel()
        await asyncio.wait([writing])


# -- closing ---------------------------------------------------------------------------------------


async def test_closing_delivers_what_the_peer_still_takes() -> None:
    async with pair() as (stream, far):
        stream.write_soon(bytes(4 * LARGE))
        closing = [asyncio.ensure_future(stream.aclose()) for _ in range(3)]
        assert len(await swallow(far, 2**30)) == 4 * LARGE
        await asyncio.wait_for(asyncio.gather(*closing), ENDED)


async def test_closing_does_not_wait_for_a_peer_that_takes_nothing() -> None:
    before = await at_rest()
    async with pair() as (stream, _):
        stream.write_soon(bytes(4 * LARGE))
        await asyncio.wait_for(stream.aclose(), ENDED)
    async with pair() as (stream, _):
        stream.write_soon(bytes(4 * LARGE))
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.02):
                await stream.aclose()
        await stream.aclose()
    assert descriptors() <= before


async def test_a_close_that_is_awaited_twice_is_no_abort() -> None:
    async with secure_pair() as (here, there):
        await there.write(b"x" * 1000)
        closing = asyncio.gather(there.aclose(), there.aclose())
        assert await here.readexactly(1000) == b"x" * 1000
        assert await here.read() == b""
        await here.aclose()
        await asyncio.wait_for(closing, ENDED)


# -- handshakes ------------------------------------------------------------------------------------


async def test_a_handshake_obeys_the_deadlines() -> None:
    before = await at_rest()
    async with pair() as (stream, _):
        stream.set_read_deadline(monotonic() + 0.02)
        with pytest.raises(StreamTimeout, match="TLS handshake"):
            await stream.start_tls(contexts()[1], "orders.test")
        assert stream.closed
        with pytest.raises(StreamTimeout):
            await stream.start_tls(contexts()[1], "orders.test")
    async with pair() as (stream, _):
        shaking = asyncio.ensure_future(stream.start_tls(contexts()[1], "orders.test"))
        await asyncio.sleep(0.01)
        with pytest.raises(UsageError, match="at once"):
            await stream.read()
        thread = threading.Thread(target=stream.set_deadline, args=[monotonic() - 1])
        thread.start()
        with pytest.raises(StreamTimeout, match="TLS handshake"):
            await asyncio.wait_for(shaking, ENDED)
        thread.join()
    assert descriptors() <= before


async def test_a_forced_break_comes_in_a_handshake_too() -> None:
    async with pair(forced_break=monotonic() + 0.02) as (stream, _):
        with pytest.raises(StreamTimeout, match="forced break"):
            await stream.start_tls(contexts()[1], "orders.test")
    with pytest.raises(StreamTimeout, match="forced break"):
        async with pair(forced_break=monotonic() - 1) as (stream, _):
            await stream.read()


async def test_a_peer_that_goes_away_in_a_handshake() -> None:
    async with pair() as (stream, far):
        shaking = asyncio.ensure_future(stream.start_tls(contexts()[1], "orders.test"))
        await asyncio.sleep(0.01)
        far.shutdown(socket.SHUT_RDWR)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await asyncio.wait_for(shaking, ENDED)
        assert stream.closed


def read_then_shake(far: socket.socket) -> int:
    far.setblocking(True)
    left = 4 * LARGE
    while left:
        left -= len(far.recv(min(left, 2**20)))
    with contexts()[0].wrap_socket(far.dup(), server_side=True) as there:
        there.sendall(b"hello")
        return len(there.recv(100))


async def test_what_was_written_before_a_handshake_goes_before_it() -> None:
    async with pair() as (stream, far):
        stream.write_soon(bytes(4 * LARGE))
        other_side = asyncio.ensure_future(asyncio.to_thread(read_then_shake, far))
        await asyncio.wait_for(stream.start_tls(contexts()[1], "orders.test"), ENDED)
        assert await stream.read() == b"hello"
        await stream.write(b"bye")
        assert await other_side == 3


async def test_tls_in_tls() -> None:
    async with secure_pair() as (here, there):
        await asyncio.gather(
            there.start_tls(contexts()[0], server_side=True),
            here.start_tls(contexts()[1], "orders.test"),
        )
        body = random.Random(6).randbytes(LARGE)
        writing = asyncio.ensure_future(here.write(body))
        assert await there.readexactly(len(body)) == body
        await writing
        await asyncio.wait_for(asyncio.gather(here.aclose(), there.aclose()), ENDED)


# -- nothing is left -------------------------------------------------------------------------------


async def _life(near: socket.socket, far: socket.socket) -> None:
    stream = await Stream.over(near)
    try:
        there = await Stream.over(far)
        try:
            await asyncio.gather(
                there.start_tls(contexts()[0], server_side=True),
                stream.start_tls(contexts()[1], "orders.test"),
            )
            await stream.write(b"hello\n")
            assert await there.readuntil() == b"hello\n"
            await there.write(bytes(100_000))
            assert len(await stream.readexactly(100_000)) == 100_000
            await asyncio.gather(stream.aclose(), there.aclose())
        finally:
            there.abort()
    finally:
        stream.abort()


async def test_cancelled_at_every_turn_of_its_life_nothing_is_left() -> None:
    before = await at_rest()
    for turn in range(1, 10_000):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        life = asyncio.ensure_future(_life(near, far))
        for _ in range(turn):
            await asyncio.sleep(0)
        ended = life.done()
        life.cancel()
        await asyncio.wait([life])
        far.close()  # where the cancellation came before it was anybody's
        for _ in range(3):
            await asyncio.sleep(0)
        assert descriptors() <= before, f"after turn {turn}"
        assert life.cancelled() or ended
        if ended:
            life.result()
            break
    assert 10 < turn < 9_999


async def test_ten_thousand_are_opened_and_closed_and_their_numbers_given_out_again() -> None:
    # Each has deadlines and a forced break that pass while its number belongs to somebody else.
    before = await at_rest()
    dice = random.Random(8)
    others: list[tuple[socket.socket, socket.socket]] = []
    for turn in range(10_000):
        near, far = socket.socketpair()
        near.setblocking(False)
        number = near.fileno()
        at = monotonic() + dice.choice((0.001, 0.002, 0.01))
        stream = await Stream.over(near, forced_break=at)
        stream.set_deadline(at)
        if turn % 4 == 0:
            reading = asyncio.ensure_future(stream.read())
            await asyncio.sleep(0)
            stream.abort()
            with pytest.raises((ConnectionAbortedError, StreamTimeout)):
                await reading
        else:
            stream.abort()
        await stream.aclose()
        assert near.fileno() < 0
        far.close()
        again = socket.socketpair()
        assert number in {sock.fileno() for sock in again}
        others.append(again)
        if len(others) > 50:
            _check_and_close(others.pop(0))
    await asyncio.sleep(0.02)
    for both in others:
        _check_and_close(both)
    assert descriptors() <= before


def _check_and_close(both: tuple[socket.socket, socket.socket]) -> None:
    one, other = both
    with one, other:
        assert one.send(b"alive") == 5
        assert other.recv(5) == b"alive"
