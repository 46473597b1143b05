"""In which phase the time of a call over httpx ran out, against servers that misbehave."""

# ruff: noqa: SIM117 - a scope inside a client reads better as a block of its own

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import httpx2
import pytest
import trustme

import holdfast
from holdfast.adapters.httpx import instrument, uninstrument
from holdfast.adapters.httpx.network import Connection, Network
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.faults import Fault, classify
from holdfast.domain.phases import DIALLING, Ended, Phase, Shares, Trail
from holdfast.runtime.net.dial import Dialer
from holdfast.runtime.net.resolver import Resolver

pytestmark = pytest.mark.real_time("asyncio", "uvloop")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
QUICK = Shares(floors={}, weights={**dict.fromkeys(Phase, 0.02), Phase.BODY: 1.0})
"""A phase of a dial may take about a fiftieth of what is left."""
AUTHORITY = trustme.CA()


class Peer:
    """A server: where it is and which connections it has."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.at = f"127.0.0.1:{port}"
        self.url = f"http://{self.at}"
        self.opened = 0
        self.open = 0

    async def left_alone(self) -> None:
        """Until every connection is closed."""
        for _ in range(200):
            if not self.open:
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"{self.open} connections are still open")


@asynccontextmanager
async def peer(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me.opened += 1
        me.open += 1
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client is gone: what these tests are about
        finally:
            me.open -= 1
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    me = Peer(server.sockets[0].getsockname()[1])
    try:
        yield me
    finally:
        server.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        pass


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes the connection and reads nothing."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.sleep(30)


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head(reader)
    await drip(reader, writer, b"HTTP/1.1 200 OK\r\nx-long: " + b"y" * 1000)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    await drip(reader, writer, b"x" * 1000)


async def hints(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head(reader)
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await head(reader)
        writer.write(OK)


async def round_and_round(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        number = int((await head(reader)).split()[1].strip(b"/") or 0)
        await asyncio.sleep(0.1)
        to = f"HTTP/1.1 302 Found\r\nlocation: /{number + 1}\r\ncontent-length: 0\r\n\r\n"
        writer.write(to.encode())


class Dead:
    """A name server that never answers."""

    kinds = ("ADDRESS",)
    asks = "192.0.2.53"

    def start(self, name: str, kind: str, done: Any) -> None:
        pass

    def close(self) -> None:
        pass


def sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("socket:")
    return found


@asynccontextmanager
async def full() -> AsyncIterator[str]:
    """A listener whose queue is full: no SYN is answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        await asyncio.sleep(0.05)
        try:
            yield "127.0.0.1:{1}".format(*listener.getsockname())
        finally:
            for other in others:
                other.close()


class Seen:
    """Is told of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Trail, BaseException | None]] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.calls.append((trail, error))


@pytest.fixture
def lib(holdfast_loop: str) -> Any:
    """Either library on one of the loops: what is theirs here and what is the loop's never meet."""
    return {"asyncio": httpx, "uvloop": httpx2}[holdfast_loop]


def client(lib: Any, options: dict[str, Any] | None = None, **given: Any) -> Any:
    given.setdefault("timeout", None)
    return instrument(lib.AsyncClient(trust_env=False, **given), **(options or {}))


async def late(call: Awaitable[Any], seconds: float = 0.25) -> holdfast.DeadlineExceeded:
    """The error of a call that has `seconds`."""
    with pytest.raises(holdfast.DeadlineExceeded) as caught:
        async with holdfast.timeout(seconds, name="order"):
            await call
    assert caught.value.cause.scope == "order"
    trail = caught.value.trail
    assert trail is not None
    assert trail.steps[-1].ended is Ended.TIMEOUT
    assert trail.took.keys() <= set(Phase)
    assert trail.event in "".join(caught.value.__notes__)
    return caught.value


# -- the whole limit is spent, and the error says where --------------------------------------------


async def test_while_the_name_is_looked_up(lib: Any) -> None:
    async with client(lib, {"resolver": Resolver(Dead())}) as http:
        error = await late(http.get("http://orders.test/1?secret=1"))
    assert error.phase is Phase.DNS
    assert error.trail is not None
    assert error.trail.target == "GET http://orders.test/1"
    assert "192.0.2.53" in error.trail.line()


async def test_while_connecting(lib: Any) -> None:
    async with full() as at, client(lib) as http:
        error = await late(http.get(f"http://{at}/"))
    assert error.phase is Phase.CONNECT
    assert error.trail is not None
    assert [(a.address, a.result) for a in error.trail.attempts] == [(at, "timeout")]


async def test_in_the_tls_handshake(lib: Any) -> None:
    async with peer(silent) as server, client(lib) as http:
        error = await late(http.get(f"https://{server.at}/"))
        assert error.phase is Phase.TLS
        await server.left_alone()


async def test_in_a_tls_handshake_that_trickles(lib: Any) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await drip(reader, writer, b"\x16\x03\x03\x40\x00" + bytes(1000))

    async with peer(trickle) as server, client(lib) as http:
        error = await late(http.get(f"https://{server.at}/"))
        assert error.phase is Phase.TLS
        await server.left_alone()


async def test_while_a_proxy_connects(lib: Any) -> None:
    async with peer(silent) as proxy, client(lib, proxy=proxy.url) as http:
        error = await late(http.get("https://orders.test/"))
        assert error.phase is Phase.PROXY
        assert error.trail is not None
        assert error.trail.target == f"GET https://orders.test/ via {proxy.at}"
        assert Phase.PROXY in error.trail.route
        await proxy.left_alone()


async def test_behind_a_proxy_that_passes_on(lib: Any) -> None:
    async with peer(silent) as proxy, client(lib, proxy=proxy.url) as http:
        error = await late(http.get("http://orders.test/"))
        assert error.phase is Phase.HEADER
        assert error.trail is not None
        assert f"via {proxy.at}" in str(error.trail.line())
        assert Phase.PROXY not in error.trail.route
        await proxy.left_alone()


async def test_while_a_socks_proxy_connects(lib: Any) -> None:
    async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readexactly(3))[0] == 5
        writer.write(b"\x05\x00")
        await reader.readexactly(4 + 1 + len("orders.test") + 2)
        if times.pop():
            return await silent(reader, writer)
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        return await good(reader, writer)

    times = [False, True, False]
    async with peer(socks) as proxy:
        async with client(lib, proxy=f"socks5://{proxy.at}") as http:
            async with holdfast.timeout(5.0):
                assert (await http.get("http://orders.test/")).text == "ok"
        one = lib.Limits(max_connections=1)
        async with client(lib, proxy=f"socks5://{proxy.at}", limits=one) as http:
            error = await late(http.get("http://orders.test/"))
            assert error.phase is Phase.PROXY
            assert error.trail is not None
            assert Phase.PROXY in error.trail.route
            await proxy.left_alone()
            # And its place in the pool is free.
            async with holdfast.timeout(5.0):
                assert (await http.get("http://orders.test/")).text == "ok"


async def test_while_waiting_for_a_place_in_the_pool(lib: Any) -> None:
    async with peer(silent) as server, client(lib, limits=lib.Limits(max_connections=1)) as http:
        first = asyncio.get_running_loop().create_task(http.get(server.url))
        await asyncio.sleep(0.05)
        error = await late(http.get(server.url))
        assert error.phase is Phase.POOL
        first.cancel()
        await asyncio.wait([first])
        await server.left_alone()


async def test_while_waiting_for_the_header(lib: Any) -> None:
    async with peer(silent) as server, client(lib) as http:
        error = await late(http.get(server.url))
        assert error.phase is Phase.HEADER
        trail = error.trail
        assert trail is not None
        assert [step.phase for step in trail.steps] == [
            Phase.POOL,
            Phase.DNS,
            Phase.CONNECT,
            Phase.REQUEST,
            Phase.HEADER,
        ]
        assert trail.sent > 50
        assert trail.received == 0
        assert trail.client == lib.__name__
        await server.left_alone()


async def test_while_the_header_trickles(lib: Any) -> None:
    async with peer(slow_head) as server, client(lib) as http:
        error = await late(http.get(server.url))
        assert error.phase is Phase.HEADER
        assert error.trail is not None
        assert error.trail.received > 0
        await server.left_alone()


async def test_under_a_flood_of_interim_responses(lib: Any) -> None:
    async with peer(hints) as server, client(lib) as http:
        error = await late(http.get(server.url))
        assert error.phase is Phase.HEADER
        assert error.trail is not None
        assert error.trail.interim == 103
        assert "last interim response 103" in error.trail.line()
        await server.left_alone()


async def test_while_the_body_trickles(lib: Any) -> None:
    async with peer(slow_body) as server, client(lib) as http:
        error = await late(http.get(server.url))
        assert error.phase is Phase.BODY
        await server.left_alone()


async def test_while_a_streamed_body_trickles(lib: Any) -> None:
    async with peer(slow_body) as server, client(lib) as http:

        async def read() -> None:
            async with http.stream("GET", server.url) as response:
                async for _ in response.aiter_bytes():
                    pass

        assert (await late(read())).phase is Phase.BODY
        await server.left_alone()


async def test_a_body_that_nobody_reads_is_not_to_blame(lib: Any) -> None:
    async def much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + bytes(9_000_000))
        await writer.drain()

    async with peer(much) as server, client(lib) as http:
        with pytest.raises(holdfast.DeadlineExceeded) as caught:  # noqa: PT012 - a whole block
            async with holdfast.timeout(0.3):
                async with http.stream("GET", server.url):
                    await asyncio.sleep(5)
        assert caught.value.trail is None
        await server.left_alone()


async def test_while_an_upload_stalls(lib: Any) -> None:
    async with peer(deaf) as server, client(lib) as http:
        before = sockets()
        error = await late(http.post(server.url, content=bytes(32_000_000)))
        assert error.phase is Phase.REQUEST
        for _ in range(20):  # the server has its own for as long as it likes
            if sockets() == before + server.open:
                break
            await asyncio.sleep(0.01)
        assert sockets() == before + server.open
        assert error.trail is not None
        assert 0 < error.trail.sent < 32_000_000
        assert [type(c) for c in http._transport.inner._pool.connections] == []


async def test_while_redirected_again_and_again(lib: Any) -> None:
    async with peer(round_and_round) as server:
        async with client(lib, follow_redirects=True, max_redirects=100) as http:
            error = await late(http.get(server.url), 0.5)
        assert error.trail is not None
        assert 1 <= error.trail.redirects <= 5
        assert "redirects" in error.trail.line()
        await server.left_alone()


async def test_the_same_request_sent_twice_was_not_redirected(lib: Any) -> None:
    seen = Seen()
    async with peer(round_and_round) as server, client(lib, {"observer": seen}) as http:
        request = http.build_request("GET", server.url)
        for _ in range(2):
            await http.send(request, follow_redirects=False)
        response = await http.send(request, follow_redirects=False)
        await http.send(response.next_request)
    assert [trail.redirects for trail, _ in seen.calls] == [0, 0, 0, 1]


# -- the share of a phase is spent, and the whole is not -------------------------------------------


async def over_share(
    call: Awaitable[Any], kind: type[BaseException], seconds: float = 10.0
) -> PhaseTimeout:
    async with holdfast.timeout(seconds) as scope:
        with pytest.raises(PhaseTimeout) as caught:
            await call
        assert scope.remaining() > 0
    error = caught.value
    assert isinstance(error, kind)
    assert isinstance(error, TimeoutError)
    assert error.trail.event
    assert classify(error) is Fault.TIMED_OUT
    return error


async def test_the_share_of_the_look_up(lib: Any) -> None:
    options = {"resolver": Resolver(Dead()), "shares": QUICK}
    async with client(lib, options) as http:
        error = await over_share(http.get("http://orders.test/"), lib.ConnectTimeout)
        assert error.phase is Phase.DNS
        assert error.request.url == "http://orders.test/"  # type: ignore[attr-defined]


async def test_the_share_of_connecting(lib: Any) -> None:
    async with full() as at, client(lib, {"shares": QUICK}) as http:
        error = await over_share(http.get(f"http://{at}/"), lib.ConnectTimeout)
        assert error.phase is Phase.CONNECT


async def test_the_share_of_the_handshake(lib: Any) -> None:
    async with peer(silent) as server, client(lib, {"shares": QUICK}) as http:
        error = await over_share(http.get(f"https://{server.at}/"), lib.ConnectTimeout)
        assert error.phase is Phase.TLS
        await server.left_alone()


async def test_the_share_of_the_proxy(lib: Any) -> None:
    async with peer(silent) as proxy:
        async with client(lib, {"shares": QUICK}, proxy=proxy.url) as http:
            error = await over_share(http.get("https://orders.test/"), lib.ConnectTimeout)
            assert error.phase is Phase.PROXY
            await proxy.left_alone()


@pytest.mark.parametrize("isolation", ["auto", "never"])
async def test_the_share_of_the_header_where_that_is_wanted(lib: Any, isolation: str) -> None:
    options = {"shares": replace(QUICK, bounded=(*DIALLING, Phase.HEADER))}
    async with peer(silent) as server:
        async with client(lib, {**options, "isolation": isolation}) as http:
            error = await over_share(http.get(server.url), lib.ReadTimeout)
            assert error.phase is Phase.HEADER
            await server.left_alone()


async def test_a_pool_that_dials_again_gets_a_connection(lib: Any) -> None:
    times = 0

    async def second_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal times
        times += 1
        await (silent if times < 2 else fine)(reader, writer)

    async def fine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        await writer.start_tls(context)
        await good(reader, writer)

    trusting = ssl.create_default_context()
    AUTHORITY.configure_trust(trusting)
    transport = lib.AsyncHTTPTransport(retries=1, verify=trusting, trust_env=False)
    async with peer(second_time) as server:
        options = {
            "shares": Shares(
                floors={}, weights={Phase.TLS: 0.1, Phase.BODY: 1.0}, bounded=[Phase.TLS]
            )
        }
        async with client(lib, options, transport=transport) as http:
            async with holdfast.timeout(5.0):
                assert (await http.get(f"https://{server.at}/")).text == "ok"
    assert times == 2


# -- time-outs of the library ----------------------------------------------------------------------


async def test_its_time_outs_stay_its_own_and_have_a_trail(lib: Any) -> None:
    async def fails(kind: type[Exception], phase: Phase, call: Awaitable[Any]) -> None:
        with pytest.raises(kind) as caught:
            async with holdfast.timeout(5.0):
                await call
        assert not isinstance(caught.value, holdfast.DeadlineExceeded | PhaseTimeout)
        trail: Trail = caught.value.trail  # type: ignore[attr-defined]
        assert trail.phase is phase
        assert trail.event == phase.event
        assert trail.line() in caught.value.__notes__

    def only(**limit: float) -> Any:
        # One at a time: on a busy machine even a healthy phase may take a tenth of a second.
        return lib.Timeout(None, **limit)

    one = lib.Limits(max_connections=1)
    async with full() as at, client(lib) as http:
        call = http.get(f"http://{at}/", timeout=only(connect=0.1))
        await fails(lib.ConnectTimeout, Phase.CONNECT, call)
    async with peer(silent) as server, client(lib, limits=one) as http:
        call = http.get(f"https://{server.at}/", timeout=only(connect=0.5))
        await fails(lib.ConnectTimeout, Phase.TLS, call)
        await fails(lib.ReadTimeout, Phase.HEADER, http.get(server.url, timeout=only(read=0.1)))
        first = asyncio.get_running_loop().create_task(http.get(server.url))
        await asyncio.sleep(0.05)
        await fails(lib.PoolTimeout, Phase.POOL, http.get(server.url, timeout=only(pool=0.1)))
        first.cancel()
        await asyncio.wait([first])
    async with peer(deaf) as server, client(lib) as http:
        call = http.post(server.url, content=bytes(32_000_000), timeout=only(write=0.1))
        await fails(lib.WriteTimeout, Phase.REQUEST, call)


async def test_errors_of_the_network_tell_how_far_they_got(lib: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = "127.0.0.1:{1}".format(*free.getsockname())
        async with client(lib) as http:
            with pytest.raises(lib.ConnectError) as caught:
                await http.get(f"http://{at}/x?secret=1")
    assert classify(caught.value) is Fault.REFUSED
    notes = "".join(caught.value.__notes__)
    assert "tcp.connect failed" in notes
    assert at in notes
    assert "secret" not in notes


async def test_an_invalid_certificate_is_an_error_of_tls(lib: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with peer(good, context) as server, client(lib) as http:
        with pytest.raises(lib.ConnectError) as caught:
            await http.get(f"https://{server.at}/")
        assert classify(caught.value) is Fault.TLS
        assert "tls.handshake failed" in "".join(caught.value.__notes__)
        await server.left_alone()


# -- what is healthy stays healthy -----------------------------------------------------------------


def trusting() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, user = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    AUTHORITY.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    AUTHORITY.configure_trust(user)
    return server, user


async def test_an_observer_is_told_of_every_call_once(lib: Any) -> None:
    seen = Seen()
    context, user = trusting()
    async with peer(good, context) as server:
        async with client(lib, {"observer": seen}, verify=user) as http:
            async with holdfast.timeout(5.0):
                for _ in range(2):
                    assert (await http.get(f"https://{server.at}/")).text == "ok"
            with pytest.raises(lib.ConnectError):
                await http.get("http://127.0.0.1:1/")
    (first, none), (second, nothing), (third, error) = seen.calls
    assert none is nothing is None
    assert isinstance(error, lib.ConnectError)
    everything = [Phase.POOL, Phase.DNS, Phase.CONNECT, Phase.TLS]
    request = [Phase.REQUEST, Phase.HEADER, Phase.BODY]
    assert [step.phase for step in first.steps] == everything + request
    assert [step.phase for step in second.steps] == [Phase.POOL, *request]
    assert all(step.ended is Ended.DONE for step in first.steps + second.steps)
    assert third.steps[-1].ended is Ended.FAILED
    assert first.received == len(OK)
    assert first.current is None


async def test_in_memory_there_is_a_trail_too(lib: Any) -> None:
    seen = Seen()

    async def answer(request: Any) -> Any:
        return lib.Response(200, text="ok")

    async def never(request: Any) -> Any:
        await asyncio.sleep(30)

    transport = lib.MockTransport(answer)
    async with client(lib, {"observer": seen}, transport=transport) as http:
        await http.get("http://orders.test/")
    assert [step.phase for step in seen.calls[0][0].steps] == [Phase.HEADER, Phase.BODY]
    async with client(lib, transport=lib.MockTransport(never)) as http:
        error = await late(http.get("http://orders.test/"), 0.1)
        assert error.phase is Phase.HEADER


async def test_a_tunnel_through_a_proxy_with_tls_inside_tls(lib: Any) -> None:
    context, user = trusting()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await head(reader)).split()[1].decode().rpartition(":")
        there, back = await asyncio.open_connection(target[0], int(target[2]))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.transport.abort()

        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(pump(reader, back))
                both.create_task(pump(there, writer))
        finally:
            back.transport.abort()
            await asyncio.sleep(0)

    for scheme, tls in (("http", None), ("https", context)):
        async with peer(good, context) as server, peer(tunnel, tls) as proxy:
            seen = Seen()
            way = lib.Proxy(f"{scheme}://{proxy.at}", ssl_context=user if tls else None)
            async with client(lib, {"observer": seen}, proxy=way, verify=user) as http:
                async with holdfast.timeout(5.0):
                    assert (await http.get(f"https://{server.at}/")).text == "ok"
                    assert (await http.get(f"https://{server.at}/")).text == "ok"
            assert server.opened == 1
            phases = [step.phase for step in seen.calls[0][0].steps]
            assert phases.count(Phase.TLS) == (2 if tls else 1)
            assert phases.index(Phase.PROXY) < len(phases) - 1 - phases[::-1].index(Phase.TLS)


async def test_http2_has_the_same_phases(lib: Any) -> None:
    async def multiplexed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(client_side=False)
        state = h2.connection.H2Connection(config=config)
        state.initiate_connection()
        writer.write(state.data_to_send())
        while data := await reader.read(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    path = dict(event.headers)[b":path"]
                    if path != b"/never":
                        number = event.stream_id
                        state.send_headers(number, [(":status", "200")])
                        state.send_data(number, b"ok", end_stream=True)
            writer.write(state.data_to_send())

    context, user = trusting()
    context.set_alpn_protocols(["h2"])
    seen = Seen()
    options = {
        "observer": seen,
        "shares": Shares(floors={}, bounded=(*DIALLING, Phase.HEADER)),
    }
    async with peer(multiplexed, context) as server:
        url = f"https://{server.at}"
        async with client(lib, options, http2=True, verify=user) as http:
            async with holdfast.timeout(5.0):
                response = await http.get(f"{url}/")
                assert (response.text, response.http_version) == ("ok", "HTTP/2")
            assert [step.phase for step in seen.calls[0][0].steps][-3:] == [
                Phase.REQUEST,
                Phase.HEADER,
                Phase.BODY,
            ]
            error = await over_share(http.get(f"{url}/never"), lib.ReadTimeout, 0.8)
            assert error.phase is Phase.HEADER
            # The other calls on the connection are none the worse for it.
            async with holdfast.timeout(5.0):
                assert (await http.get(f"{url}/")).text == "ok"
            assert server.opened == 1


async def test_a_body_over_http2_that_stops_in_the_middle(lib: Any) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        while data := await reader.read(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    state.send_headers(event.stream_id, [(":status", "200")])
            writer.write(state.data_to_send())

    async with peer(half) as server, client(lib, http1=False, http2=True) as http:
        assert (await late(http.get(server.url), 0.4)).phase is Phase.BODY
        await http.aclose()
        await server.left_alone()


async def test_a_connection_that_the_server_closed_is_not_used_again(lib: Any) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)

    async with peer(once) as server, client(lib) as http:
        for _ in range(3):
            assert (await http.get(server.url)).text == "ok"
            await server.left_alone()
            await asyncio.sleep(0.02)
        assert server.opened == 3


async def test_everything_is_put_back(lib: Any) -> None:
    async with peer(good) as server, lib.AsyncClient(trust_env=False) as http:
        before = http._transport._pool._network_backend
        instrument(http)
        pool = http._transport.inner._pool
        assert isinstance(pool._network_backend, Network)
        await http.get(server.url)
        stream = pool.connections[0]._connection._network_stream
        assert isinstance(stream, Connection)
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        uninstrument(http)
        assert http._transport._pool._network_backend is before
        # Connections that are open already go on, also without a call of ours.
        assert (await http.get(server.url)).text == "ok"
        assert server.opened == 1


async def test_a_backend_of_ones_own_stays_in_use(lib: Any) -> None:
    core = __import__(lib.__name__.replace("httpx", "httpcore"))
    asked = []

    class Own(core.AnyIOBackend):  # type: ignore[misc]
        async def connect_tcp(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args or kwargs)
            return await super().connect_tcp(*args, **kwargs)

    async with peer(silent) as server, lib.AsyncClient(trust_env=False, timeout=None) as http:
        http._transport._pool._network_backend = own = Own()
        instrument(http)
        assert (await late(http.get(server.url))).phase is Phase.HEADER
        assert (await late(http.get(f"https://{server.at}"))).phase is Phase.TLS
        assert len(asked) == 2
        uninstrument(http)
        assert http._transport._pool._network_backend is own
        await server.left_alone()


async def test_a_dialer_of_ones_own(lib: Any) -> None:
    asked: list[str] = []

    class Own(Dialer):
        async def connect_socket(self, host: str, port: int, **rest: Any) -> socket.socket:
            asked.append(host)
            return await super().connect_socket("127.0.0.1", port, **rest)

    async with peer(good) as server, client(lib, {"dialer": Own()}) as http:
        assert (await http.get(f"http://orders.test:{server.port}/")).text == "ok"
    assert asked == ["orders.test"]


async def test_unix_sockets_and_options_of_sockets(lib: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "peer")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await good(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_unix_server(serve, path)
    transport = lib.AsyncHTTPTransport(uds=path, trust_env=False)
    seen = Seen()
    async with client(lib, {"observer": seen}, transport=transport) as http:
        assert (await http.get("http://orders.test/")).text == "ok"
        assert [step.phase for step in seen.calls[0][0].steps][:2] == [Phase.POOL, Phase.CONNECT]
    server.close()
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    transport = lib.AsyncHTTPTransport(
        local_address="127.0.0.1", socket_options=options, trust_env=False
    )
    async with peer(good) as other, client(lib, transport=transport) as http:
        assert (await http.get(other.url)).text == "ok"
