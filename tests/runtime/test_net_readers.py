"""Readers to build with, and streams in the form of asyncio's."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast import net
from holdfast.domain.errors import LimitExceeded, StreamTimeout
from holdfast.runtime.net.readers import (
    Bounded,
    ByteReader,
    Chain,
    Limit,
    PushBack,
    parts,
    read_all,
)
from holdfast.testing import run_virtual


class Slow:
    """Gives its parts one by one, each after `every` seconds."""

    def __init__(self, *given: bytes, every: float = 0.0) -> None:
        self._parts = list(given)
        self._every = every
        self._rest = b""

    async def read(self, most: int = 65_536) -> bytes:
        if not self._rest:
            await asyncio.sleep(self._every)
            self._rest = self._parts.pop(0) if self._parts else b""
        data, self._rest = self._rest[:most], self._rest[most:]
        return data


CHUNKS = st.lists(st.binary(min_size=1, max_size=20), max_size=8)


@given(CHUNKS, CHUNKS, st.integers(1, 7))
def test_a_chain_is_its_parts_in_order(first: list[bytes], second: list[bytes], size: int) -> None:
    async def main() -> bytes:
        chain = Chain(Slow(*first), PushBack(), Slow(*second))
        return b"".join([part async for part in parts(chain, size)])

    assert run_virtual(main()) == b"".join(first + second)


@given(CHUNKS, st.integers(0, 100), st.integers(1, 30))
def test_a_limit_delivers_what_is_allowed_and_no_more(
    chunks: list[bytes], most: int, size: int
) -> None:
    whole = b"".join(chunks)

    async def main() -> tuple[bytes, bool]:
        limited = Limit(PushBack(reader=Slow(*chunks)), most)
        got = b""
        try:
            while part := await limited.read(size):
                got += part
        except LimitExceeded:
            return got, True
        return got, False

    got, exceeded = run_virtual(main())
    assert got == whole[:most]
    assert exceeded == (len(whole) > most)


@given(st.lists(st.one_of(st.binary(max_size=10), st.integers(0, 12)), max_size=20))
def test_what_is_pushed_back_comes_first(steps: list[bytes | int]) -> None:
    async def main() -> None:
        reader, model = PushBack(), b""
        for step in steps:
            if isinstance(step, bytes):
                reader.unread(step)
                model = step + model
            else:
                got = await reader.read(step)
                assert model.startswith(got)
                assert got or not model or step == 0
                model = model[len(got) :]
        while got := await reader.read(3):
            assert model.startswith(got)
            model = model[len(got) :]
        assert not model

    run_virtual(main())


async def test_what_was_over_a_limit_is_not_lost() -> None:
    source = PushBack(b"0123456789")
    limited = Limit(source, 4)
    assert await limited.read() == b"0123"
    with pytest.raises(LimitExceeded, match="4 bytes"):
        await limited.read()
    assert limited.left == 0
    assert await read_all(source, 100) == b"456789"
    assert await Limit(PushBack(), 0).read() == b""
    with pytest.raises(ValueError, match="negative"):
        Limit(source, -1)


async def test_cancelled_in_the_middle_the_next_read_has_it_all() -> None:
    # The limit counts what it has delivered, and what was pushed back comes with the next read.
    slow = Slow(b"later", every=1.0)
    head = PushBack(b"now ")
    chain = Chain(Limit(head, 10), slow)
    assert await chain.read(2) == b"no"
    assert await chain.read(2) == b"w "
    reading = asyncio.ensure_future(chain.read())
    await asyncio.sleep(0.5)
    reading.cancel()
    await asyncio.wait([reading])
    head.unread(b"back ")
    whole = Chain(head, chain)
    assert await read_all(whole, 100) == b"back later"


async def test_a_reader_ends_with_the_scope_in_which_it_was_made() -> None:
    async with holdfast.timeout(1.0):
        body = Bounded(Slow(*[b"x"] * 100, every=0.3))
    with pytest.raises(holdfast.DeadlineExceeded):
        await read_all(body, 1000)
    free = Bounded(Slow(b"x", every=0.3))
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.1):
            await free.read()
    assert await free.read() == b"x"


async def test_a_peer_that_trickles_is_given_up_long_before_the_deadline() -> None:
    loop = asyncio.get_running_loop()
    async with holdfast.timeout(1000):
        slow = Bounded(Slow(*[b"x"] * 1000, every=1.0), least_rate=10, patience=5.0)
        began = loop.time()
        with pytest.raises(StreamTimeout, match="10 bytes/s"):
            await read_all(slow, 10_000)
        assert 5.0 <= loop.time() - began < 7.0
        brisk = Bounded(Slow(*[b"x" * 20] * 30, every=1.0), least_rate=10)
        assert len(await read_all(brisk, 1000)) == 600
    with pytest.raises(ValueError, match="negative"):
        Bounded(slow, least_rate=-1)


async def test_who_takes_long_over_what_came_is_not_taken_for_a_slow_peer() -> None:
    brisk = Bounded(Slow(*[b"x" * 20] * 5, every=1.0), least_rate=10, patience=2.0)
    async for _ in parts(brisk):
        await asyncio.sleep(100)


async def test_whose_time_it_was_that_ran_out() -> None:
    async with holdfast.timeout(3.0):
        inner = Bounded(Slow(b"x", every=50.0))
    outer = Bounded(inner, least_rate=10, patience=10.0)
    with pytest.raises(holdfast.DeadlineExceeded):  # and not: too slow
        await outer.read()
    slow = Bounded(Slow(b"x", every=50.0), least_rate=10, patience=10.0)
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(1.0):
            await slow.read()
    for _ in range(2):
        with pytest.raises(StreamTimeout, match="10 bytes/s"):
            await slow.read()


async def test_every_reader_takes_bytes_back() -> None:
    limit = Limit(Slow(b"abcdef"), 4)
    for reader in (Chain(Slow(b"abcd")), limit, Bounded(Slow(b"abcd"), least_rate=1)):
        assert await reader.read(3) == b"abc"
        reader.unread(b"bc")
        reader.unread(b"")
        assert await reader.read(0) == b""
        assert await reader.read(1) == b"b"
        assert await reader.read(5) == b"c"
        assert await reader.read(5) == b"d"
    for _ in range(2):
        with pytest.raises(LimitExceeded):  # there was more, and there is no way back from that
            await limit.read()
    assert limit.left == 0


async def test_bytes_pushed_back_while_a_chain_waits_come_before_its_next_part() -> None:
    chain = Chain(Slow(every=1.0), Slow(b"tail", every=1.0))
    reading = asyncio.ensure_future(chain.read())
    await asyncio.sleep(0.5)
    chain.unread(b"back")
    assert await reading == b"back"
    assert await chain.read() == b"tail"


async def test_everything_in_one_piece_or_not_at_all() -> None:
    assert await read_all(Slow(b"ab", b"cd"), 4) == b"abcd"
    with pytest.raises(LimitExceeded):
        await read_all(Slow(b"ab", b"cd"), 3)
    assert isinstance(PushBack(), ByteReader)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.real_time("asyncio", "uvloop")
async def test_streams_as_asyncio_has_them() -> None:
    async def serve(reader: net.Reader, writer: net.Writer) -> None:
        async for line in reader:
            writer.writelines([line.upper(), b"."])
            await writer.drain()
        assert reader.at_eof()
        writer.write(b"bye")

    server = await net.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with holdfast.timeout(10):
        reader, writer = await net.open_connection("localhost", port)
        writer.write(b"hello\n")
        await writer.drain()
        assert await reader.readline() == b"HELLO\n"
        assert await reader.readexactly(1) == b"."
        assert writer.can_write_eof()
        assert writer.get_extra_info("peername")[1] == port
        writer.write(b"last\n")
        writer.write_eof()
        assert await reader.read() == b"LAST\n.bye"
        assert await reader.readline() == b""
        assert not writer.is_closing()
        writer.close()
        assert writer.is_closing()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_streams_end_with_their_scope_and_their_deadlines() -> None:
    noticed = asyncio.Event()

    async def serve(reader: net.Reader, writer: net.Writer) -> None:
        with pytest.raises(ConnectionResetError):  # and not the end that comes after `close`
            await reader.read()
        noticed.set()

    server = await net.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await net.open_connection("127.0.0.1", port, limit=10)
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(0.05):
            await reader.read(1)
    reader.set_deadline(asyncio.get_running_loop().time() - 1)
    with pytest.raises(net.StreamTimeout):
        await reader.read(1)
    writer.set_deadline(asyncio.get_running_loop().time() - 1)
    writer.write(b"x" * 32 * 2**20)
    with pytest.raises(net.StreamTimeout):
        await writer.drain()
    await writer.wait_closed()
    with pytest.raises(OSError, match="closed"):
        await reader.read(1)
    await asyncio.wait_for(noticed.wait(), 5)
    await asyncio.sleep(0.01)
    server.close()
    await server.wait_closed()


@pytest.mark.real_time("asyncio", "uvloop")
async def test_streams_over_tls() -> None:
    authority = trustme.CA()
    there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(there)
    here = ssl.create_default_context()
    authority.configure_trust(here)

    async def serve(reader: net.Reader, writer: net.Writer) -> None:
        writer.write(await reader.readline())

    server = await net.start_server(serve, "127.0.0.1", 0, ssl=there)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await net.open_connection("localhost", port, ssl=here)
    assert not writer.can_write_eof()
    writer.write(b"secret\n")
    await writer.drain()
    assert await reader.readline() == b"secret\n"
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
