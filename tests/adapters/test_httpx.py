"""The asynchronous carrier of httpx and httpx2, against peers that misbehave on purpose."""

# ruff: noqa: SIM117 - a scope inside a client reads better as a block of its own

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import httpx2
import pytest

import holdfast
from holdfast.adapters.httpx import (
    AsyncHoldfastTransport,
    HoldfastTransport,
    instrument,
    uninstrument,
)
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried, Identity
from holdfast.domain.wire.problem import encode_cause_header, problem
from holdfast.runtime.ambient import use
from holdfast.runtime.clock import monotonic
from holdfast.runtime.ledger import Ledger

BUDGET = "x-envoy-expected-rq-timeout-ms"
EXAMPLE = "http://orders.local/items?secret=1"

Handler = Callable[["Peer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A raw server: what it saw, and how many connections it has."""

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.opened = 0
        self.open = 0
        self.requests: list[bytes] = []

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        return head


@asynccontextmanager
async def peer(handler: Handler) -> AsyncIterator[Peer]:
    me = Peer()
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me.opened += 1
        me.open += 1
        try:
            await handler(me, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            me.open -= 1
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    me.port = server.sockets[0].getsockname()[1]
    me.url = f"http://127.0.0.1:{me.port}"
    try:
        yield me
    finally:
        server.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def echo(me: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request with its own path, after as long as the query says."""
    while True:
        target = (await me.head(reader)).split()[1].decode()
        path, _, wait = target.partition("?")
        await asyncio.sleep(float(wait or 0))
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(path)}\r\n\r\n{path}".encode())


async def drip(me: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A body of one byte per 20 ms."""
    await me.head(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_head(me: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A head of one byte per 20 ms."""
    await me.head(reader)
    for byte in b"HTTP/1.1 200 OK\r\nx-long: " + b"y" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def silent(me: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads and never answers: a TLS handshake, or a request, goes nowhere."""
    while data := await reader.read(4096):
        me.requests.append(data)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run, and see to it that nothing is left behind."""

    async def checked() -> None:
        await main
        for _ in range(20):
            if len(asyncio.all_tasks()) == 1 and not len(holdfast.tree()):
                break
            await asyncio.sleep(0.01)
        assert len(holdfast.tree()) == 0, str(holdfast.tree())
        assert asyncio.all_tasks() == {asyncio.current_task()}
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(checked())
    gc.collect()


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def lib(request: pytest.FixtureRequest) -> Any:
    return request.param


def client(lib: Any, **options: Any) -> Any:
    limits = lib.Limits(max_connections=options.pop("pool", 10))
    return instrument(lib.AsyncClient(limits=limits, trust_env=False), **options)


def mock(lib: Any, handler: Any, **options: Any) -> Any:
    return instrument(lib.AsyncClient(transport=lib.MockTransport(handler)), **options)


def ok(lib: Any) -> tuple[list[Any], Any]:
    seen: list[Any] = []

    def handler(request: Any) -> Any:
        seen.append(request)
        return lib.Response(200, text="ok")

    return seen, handler


# -- what is sent ----------------------------------------------------------------------------------


def test_without_a_scope_nothing_is_added(lib: Any) -> None:
    async def main() -> None:
        seen, handler = ok(lib)
        async with mock(lib, handler) as http:
            request = http.build_request("GET", EXAMPLE)
            await http.send(request)
        assert seen == [request]

    run(main())


def test_what_is_left_and_who_it_is_go_out(lib: Any) -> None:
    async def main() -> None:
        seen, handler = ok(lib)
        who = Identity("a" * 32, "b" * 16, tracestate="v=1")
        async with mock(lib, handler, reserve=0.5) as http:
            async with use(Carried(who, "canary", {"k": "v"})), holdfast.timeout(2.0):
                request = http.build_request("GET", EXAMPLE)
                await http.send(request)
        sent = seen[0].headers
        assert 1400 <= int(sent[BUDGET]) < 1500
        assert sent["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-01"
        assert sent["x-request-id"] == "a" * 32
        assert sent["tracestate"] == "v=1"
        assert sent["baggage"] == "k=v"
        assert sent["x-release-stage"] == "canary"
        assert all(0 < bound < 2 for bound in seen[0].extensions["timeout"].values())
        # The caller's own request is as it was: it may be sent again, with another budget.
        assert BUDGET not in request.headers
        assert request.extensions["timeout"]["read"] == 5.0

    run(main())


def test_a_header_of_the_caller_is_never_doubled_and_the_tighter_budget_wins(lib: Any) -> None:
    async def main() -> None:
        seen, handler = ok(lib)
        who = Carried(Identity("a" * 32, "b" * 16, tracestate="v=1"), "", {"k": "v", "l": "1"})
        async with mock(lib, handler) as http, use(who), holdfast.timeout(2.0):
            for value in ("100", "9000", "rubbish"):
                given = {BUDGET.title(): value, "traceparent": "mine", "baggage": "k=own"}
                await http.get(EXAMPLE, headers=given)
        budgets = [request.headers.get_list(BUDGET) for request in seen]
        assert budgets[0] == ["100"]
        assert all(len(found) == 1 and 1500 < int(found[0]) < 2000 for found in budgets[1:])
        assert seen[0].headers.get_list("traceparent") == ["mine"]
        assert "tracestate" not in seen[0].headers
        assert seen[0].headers.get_list("baggage") == ["k=own,l=1"]

    run(main())


def test_time_outs_are_clamped_and_never_loosened(lib: Any) -> None:
    async def main() -> None:
        seen, handler = ok(lib)
        async with mock(lib, handler) as http, holdfast.timeout(1.0):
            await http.get(EXAMPLE, timeout=lib.Timeout(None, connect=0.1, read=50))
        found = seen[0].extensions["timeout"]
        assert found["connect"] == 0.1
        assert all(0.9 < found[phase] <= 1.0 for phase in ("read", "write", "pool"))

    run(main())


def test_ten_hops_never_move_the_deadline(lib: Any) -> None:
    async def main() -> None:
        ends: list[float] = []

        async def handler(request: Any) -> Any:
            left = int(request.headers[BUDGET]) / 1000
            ends.append(monotonic() + left)
            if len(ends) < 10:
                async with holdfast.timeout(left):
                    await http.get(EXAMPLE)
            return lib.Response(200)

        async with mock(lib, handler) as http, holdfast.timeout(2.0) as scope:
            await http.get(EXAMPLE)
            # Each hop may lose at most the rounding of a millisecond, and the time it took itself.
            assert len(ends) == 10
            assert scope.deadline >= ends[-1] > scope.deadline - 0.2
            assert all(end <= scope.deadline + 0.003 for end in ends)

    run(main())


def test_the_wait_for_the_pool_is_not_promised_to_the_next_hop(lib: Any) -> None:
    async def main() -> None:
        async with peer(echo) as server, client(lib, pool=1) as http, holdfast.timeout(5.0):
            async with holdfast.tasks() as group:
                group.start(http.get(f"{server.url}/a?0.3"))
                group.start(http.get(f"{server.url}/b"))
        second = next(head for head in server.requests if b" /b" in head)
        budget = next(line for line in second.split(b"\r\n") if line.startswith(BUDGET.encode()))
        assert int(budget.split(b":")[1]) <= 4_700

    run(main())


# -- refusal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("need", [0.0, 1.0])
def test_refused_before_dialling(lib: Any, need: float) -> None:
    async def main() -> None:
        async with peer(echo) as server, client(lib, refuse_below=need) as http:
            async with holdfast.timeout(0.3 if need else 0.001, name="charge"):
                until = monotonic() + 0.002
                while not need and monotonic() < until:
                    pass  # spent, and the loop has had no chance to say so
                with pytest.raises(lib.TimeoutException) as caught:
                    await http.get(server.url)
                assert isinstance(caught.value, holdfast.InsufficientBudget)
                assert caught.value.cause.scope == "charge/GET 127.0.0.1/"
                assert "not begun" in str(caught.value)
                assert str(caught.value.request.url).startswith(server.url)
                if not need:
                    with pytest.raises(asyncio.CancelledError):
                        await asyncio.sleep(1)
                    raise asyncio.CancelledError
            assert server.opened == 0

    if need:
        run(main())
    else:
        with pytest.raises(holdfast.DeadlineExceeded):
            run(main())


# -- the deadline, whatever trickles ---------------------------------------------------------------


@pytest.mark.parametrize("handler", [drip, drip_head, silent])
def test_the_deadline_holds_against_a_trickle(lib: Any, handler: Handler) -> None:
    async def main() -> None:
        async with peer(handler) as server, client(lib) as http:
            begun = monotonic()
            with pytest.raises(holdfast.DeadlineExceeded, match="scope 'charge'") as caught:
                async with holdfast.timeout(0.2, name="charge"):
                    await http.get(server.url)
            assert 0.2 <= monotonic() - begun < 3
            notes = "".join(getattr(caught.value.__cause__, "__notes__", ()))
            assert ("body" if handler is drip else "response") in notes
            await left_alone(server)

    run(main())


def test_a_body_read_elsewhere_keeps_its_deadline(lib: Any) -> None:
    async def main() -> None:
        async with peer(drip) as server, client(lib) as http:
            begun = monotonic()
            async with holdfast.timeout(0.2, name="charge"):
                request = http.build_request("GET", server.url)
                response = await http.send(request, stream=True)
            with pytest.raises(lib.TimeoutException) as caught:
                await response.aread()
            assert 0.19 < monotonic() - begun < 3
            assert isinstance(caught.value, holdfast.DeadlineExceeded)
            cause = caught.value.cause
            assert cause.scope == "charge/GET 127.0.0.1/"
            assert "while reading the body" in cause.detail
            assert "bytes received" in cause.detail
            assert 0.19 < cause.budget <= 0.2 <= cause.elapsed + 0.01
            await response.aclose()

    run(main())


def test_without_a_task_of_its_own_a_body_keeps_its_deadline_too(lib: Any) -> None:
    async def main() -> None:
        async def slow() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)

        def handler(request: Any) -> Any:
            return lib.Response(200, content=slow())

        async with mock(lib, handler) as http:
            async with holdfast.timeout(0.1, name="charge"):
                response = await http.send(http.build_request("GET", EXAMPLE), stream=True)
            with pytest.raises(holdfast.DeadlineExceeded, match=r"reading the body, [0-9]+ bytes"):
                await response.aread()
            await response.aclose()

    run(main())


# -- the connection afterwards ---------------------------------------------------------------------


async def left_alone(server: Peer) -> None:
    """All connections to a peer are closed; it notices when it writes to them."""
    async with asyncio.timeout(0.5):
        while server.open:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.005)


async def healthy(http: Any, server: Peer, size: int) -> None:
    async with asyncio.timeout(2):
        texts = await asyncio.gather(*(_text(http, f"{server.url}/{i}?0.02") for i in range(size)))
    assert texts == [f"/{i}" for i in range(size)]


async def _text(http: Any, url: str) -> str:
    text: str = (await http.get(url)).text
    return text


async def by_holdfast(work: Coroutine[Any, Any, Any], after: float) -> None:
    with pytest.raises(holdfast.DeadlineExceeded):
        async with holdfast.timeout(after):
            await work


async def by_asyncio(work: Coroutine[Any, Any, Any], after: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after):
            await work


async def by_anyio(work: Coroutine[Any, Any, Any], after: float) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(after):
            await work


async def by_task(work: Coroutine[Any, Any, Any], after: float) -> None:
    task = asyncio.get_running_loop().create_task(work)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # and once more, into whatever it does about the first
    with pytest.raises(asyncio.CancelledError):
        await task


WAYS = pytest.mark.parametrize("give_up", [by_holdfast, by_asyncio, by_anyio, by_task])


@WAYS
def test_given_up_while_it_waits_for_a_place_in_the_pool(lib: Any, give_up: Any) -> None:
    async def main() -> None:
        async with peer(echo) as server, client(lib, pool=1) as http:
            first = asyncio.get_running_loop().create_task(_text(http, f"{server.url}/a?0.2"))
            await asyncio.sleep(0.05)
            await give_up(http.get(f"{server.url}/b"), 0.05)
            assert await first == "/a"
            await healthy(http, server, 1)
            assert server.opened == 1

    run(main())


@WAYS
def test_given_up_at_the_hand_over(lib: Any, give_up: Any) -> None:
    async def main() -> None:
        async with peer(echo) as server, client(lib, pool=1) as http:
            for i in range(8):
                wait = 0.02
                first = asyncio.get_running_loop().create_task(
                    _text(http, f"{server.url}/a?{wait}")
                )
                try:
                    await give_up(http.get(f"{server.url}/b?1"), wait + 0.0005 * (i - 2))
                finally:
                    assert await first == "/a"
            await healthy(http, server, 1)

    run(main())


@WAYS
def test_given_up_while_connecting(lib: Any, give_up: Any) -> None:
    async def main() -> None:
        # A listener whose queue is full answers no SYN.
        import socket

        with socket.socket() as full, socket.socket() as filler:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            filler.connect(full.getsockname())
            others = [socket.socket() for _ in range(4)]
            for other in others:
                other.setblocking(False)
                other.connect_ex(full.getsockname())
            async with peer(echo) as server, client(lib, pool=1) as http:
                await give_up(http.get(f"http://127.0.0.1:{full.getsockname()[1]}/"), 0.05)
                await healthy(http, server, 1)
            for other in others:
                other.close()

    run(main())


@WAYS
def test_given_up_in_the_tls_handshake(lib: Any, give_up: Any) -> None:
    async def main() -> None:
        async with peer(silent) as mute, peer(echo) as server, client(lib, pool=1) as http:
            await give_up(http.get(f"https://127.0.0.1:{mute.port}/"), 0.1)
            assert mute.opened == 1
            await left_alone(mute)
            await healthy(http, server, 1)

    run(main())


@WAYS
def test_given_up_after_the_request_was_sent(lib: Any, give_up: Any) -> None:
    async def main() -> None:
        async with peer(echo) as server, client(lib, pool=1) as http:
            await give_up(http.get(f"{server.url}/late?0.1"), 0.05)
            await asyncio.sleep(0.1)  # by now the reply to it would be in the socket
            await healthy(http, server, 1)
            assert server.opened == 2

    run(main())


@WAYS
def test_given_up_in_the_body(lib: Any, give_up: Any) -> None:
    async def main() -> None:
        async with peer(drip) as slow, peer(echo) as server, client(lib, pool=1) as http:
            await give_up(http.get(slow.url), 0.1)
            await healthy(http, server, 1)
            await left_alone(slow)

    run(main())


@WAYS
def test_given_up_while_closing(lib: Any, give_up: Any) -> None:
    async def main() -> None:
        async with peer(drip) as slow, peer(echo) as server, client(lib, pool=1) as http:

            async def close_and_wait() -> None:
                async with http.stream("GET", slow.url):
                    await asyncio.sleep(0.05)
                await asyncio.sleep(1)

            await give_up(close_and_wait(), 0.0502)
            await healthy(http, server, 1)

    run(main())


def test_an_unread_response_gives_its_connection_back(lib: Any) -> None:
    async def main() -> None:
        async with peer(echo) as server, client(lib, pool=1) as http:
            for _ in range(3):
                async with http.stream("GET", f"{server.url}/x") as response:
                    assert response.status_code == 200
            await healthy(http, server, 1)
        async with peer(drip) as slow, client(lib, pool=1) as http:
            async with http.stream("GET", slow.url):
                pass
            await left_alone(slow)

    run(main())


def test_a_big_body_waits_for_its_reader(lib: Any) -> None:
    async def big(me: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await me.head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\n\r\n")
            for _ in range(8):
                writer.write(b"z" * 1_000_000)
                await writer.drain()

    async def main() -> None:
        async with peer(big) as server, client(lib, pool=1) as http, holdfast.timeout(10):
            async with http.stream("GET", server.url) as response:
                await asyncio.sleep(0.05)
                size = [len(part) async for part in response.aiter_raw()]
            assert sum(size) == 8_000_000
            async with http.stream("GET", server.url) as response:
                await asyncio.sleep(0.05)
            assert (await http.get(server.url)).num_bytes_downloaded == 8_000_000

    run(main())


# -- errors ----------------------------------------------------------------------------------------


def test_errors_of_the_library_stay_its_own(lib: Any) -> None:
    async def main() -> None:
        async with client(lib) as http:
            with pytest.raises(lib.ConnectError) as caught:
                async with holdfast.timeout(1.0):
                    await http.get("http://127.0.0.1:1/")
            assert "in call 'GET 127.0.0.1/' (budget" in caught.value.__notes__[0]
            assert not isinstance(caught.value, holdfast.HoldfastError)

    run(main())


def test_the_librarys_own_time_out_stays_its_own(lib: Any) -> None:
    async def main() -> None:
        async with peer(silent) as server, client(lib) as http:
            with pytest.raises(lib.ReadTimeout):
                async with holdfast.timeout(5.0):
                    await http.get(server.url, timeout=0.05)

    run(main())


# -- what the hop below says -----------------------------------------------------------------------

THEIRS = Cause(CauseKind.DEADLINE, "charge/db", "orders", budget=0.2, elapsed=0.21)


@pytest.mark.parametrize("form", ["header", "problem"])
@pytest.mark.parametrize("isolation", ["auto", "always"])
def test_a_504_of_the_hop_below_is_a_deadline(lib: Any, form: str, isolation: str) -> None:
    def handler(request: Any) -> Any:
        headers = {"deadline-exceeded": encode_cause_header(THEIRS)}
        body = b"<html>gateway</html>"
        if form == "problem":
            headers["content-type"] = "application/problem+json"
            body = problem(THEIRS, status=504)
        headers["server-timing"] = "orders;dur=210, orders.db;dur=200"
        return lib.Response(504, headers=headers, content=body)

    async def main() -> None:
        async with mock(lib, handler, service="orders", isolation=isolation) as http:
            async with holdfast.timeout(1.0, name="edge") as scope:
                scope.ledger = ledger = Ledger()
                with pytest.raises(lib.TimeoutException) as caught:
                    await http.get(EXAMPLE)
                cause = caught.value.cause
                assert cause.scope == "edge/GET orders/items"
                assert [below.scope for below in cause.below] == ["charge/db"]
                assert cause.origin.hop == "orders"
                assert ledger.spent == [("orders", 0.21), ("orders.db", 0.2)]
                assert [found.scope for found in ledger.below] == ["charge/db"]
        async with mock(lib, handler, raise_for_deadline=False, isolation=isolation) as http:
            response = await http.get(EXAMPLE)
            assert response.status_code == 504
            assert len(response.content) > 10

    run(main())


def test_a_later_deadline_of_ours_tells_what_the_ledger_knows(lib: Any) -> None:
    def handler(request: Any) -> Any:
        return lib.Response(503, headers={"deadline-exceeded": encode_cause_header(THEIRS)})

    async def main() -> None:
        async with mock(lib, handler, refuse_below=0.9) as http:
            async with holdfast.timeout(1.0) as scope:
                scope.ledger = Ledger()
                assert (await http.get(EXAMPLE)).status_code == 503
                await asyncio.sleep(0.11)
                with pytest.raises(holdfast.DeadlineExceeded) as caught:
                    await http.get(EXAMPLE)
                assert caught.value.cause.below[0].scope == "charge/db"

    run(main())


def test_children_write_into_the_ledger_of_the_request(lib: Any) -> None:
    def handler(request: Any) -> Any:
        return lib.Response(200, headers={"server-timing": "orders;dur=10"})

    async def main() -> None:
        async with mock(lib, handler) as http, holdfast.scope("request") as scope:
            scope.ledger = Ledger()
            async with holdfast.tasks() as group:
                group.start(http.get(EXAMPLE))
            assert scope.ledger.spent == [("orders", 0.01)]

    run(main())


# -- clients ---------------------------------------------------------------------------------------


def test_instrument_is_idempotent_and_can_be_undone(lib: Any) -> None:
    for kind, transport, ours in (
        (lib.AsyncClient, lib.AsyncHTTPTransport, AsyncHoldfastTransport),
        (lib.Client, lib.HTTPTransport, HoldfastTransport),
    ):
        plain, mounted = transport(), transport()
        made = kind(transport=plain, mounts={"http://a": mounted, "http://b": None})
        assert instrument(instrument(made)) is made
        assert isinstance(made._transport, ours)
        base = lib.AsyncBaseTransport if kind is lib.AsyncClient else lib.BaseTransport
        assert isinstance(made._transport, base)
        assert made._transport.inner is plain
        assert {type(found) for found in made._mounts.values()} == {
            type(made._transport),
            type(None),
        }
        assert uninstrument(uninstrument(made)) is made
        assert made._transport is plain
        assert mounted in made._mounts.values()
    with pytest.raises(TypeError, match="not a client"):
        instrument(object())


def test_both_libraries_in_one_process() -> None:
    async def main() -> None:
        async with peer(echo) as server, client(httpx) as one, client(httpx2) as two:
            async with holdfast.timeout(1.0, name="both"), holdfast.tasks() as group:
                first = group.start(one.get(f"{server.url}/1"))
                second = group.start(two.get(f"{server.url}/2"))
            assert isinstance(first.result(), httpx.Response)
            assert isinstance(second.result(), httpx2.Response)
            for http, lib in ((one, httpx), (two, httpx2)):
                async with holdfast.timeout(0.5):
                    http._transport.__init__(http._transport.inner, refuse_below=1.0)
                    with pytest.raises(lib.TimeoutException):
                        await http.get(server.url)

    run(main())


def test_an_asgi_app_and_a_transport_of_ones_own(lib: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": headers[BUDGET.encode()]})

    class Own(lib.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            await asyncio.sleep(0)
            return lib.Response(200, content=request.headers[BUDGET])

    async def main() -> None:
        for inner in (lib.ASGITransport(app), Own()):
            async with lib.AsyncClient(transport=AsyncHoldfastTransport(inner)) as http:
                async with holdfast.timeout(1.0):
                    assert 500 < int((await http.get(EXAMPLE)).text) < 1000

    run(main())


def test_every_nesting_leaves_the_count_of_cancellations_at_zero(lib: Any) -> None:
    async def main() -> None:
        async with peer(silent) as server, client(lib) as http:
            task = asyncio.current_task()
            assert task is not None
            for order in range(6):

                async def call() -> None:
                    await http.get(server.url)

                async def grouped() -> None:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(call())

                async def ours(inner: Any, seconds: float) -> None:
                    async with holdfast.timeout(seconds):
                        await inner()

                async def native(inner: Any, seconds: float) -> None:
                    async with asyncio.timeout(seconds):
                        await inner()

                async def anyios(inner: Any, seconds: float) -> None:
                    with anyio.fail_after(seconds):
                        await inner()

                ways = [ours, native, anyios]
                first = ways[order % 3]
                second = ways[(order + 1 + order // 3) % 3]
                for inner in (call, grouped):
                    with pytest.raises(TimeoutError):
                        await first(lambda w=second, i=inner: w(i, 0.05), 0.03 + 0.04 * (order % 2))
                    assert task.cancelling() == 0

    run(main())


def test_a_failing_sibling_ends_the_call(lib: Any) -> None:
    async def main() -> None:
        async with peer(silent) as server, client(lib) as http:

            async def fail() -> None:
                await asyncio.sleep(0.03)
                raise ValueError("no")

            with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the group is what raises
                async with holdfast.tasks() as group:
                    group.start(http.get(server.url))
                    group.start(fail())
            assert caught.group_contains(ValueError)
            await left_alone(server)

    run(main())


def test_a_call_is_seen_in_the_tree(lib: Any) -> None:
    async def main() -> None:
        async with peer(silent) as server, client(lib, service="orders") as http:
            async with holdfast.timeout(1.0, name="charge") as scope:
                task = asyncio.get_running_loop().create_task(http.get(f"{server.url}/x?secret=1"))
                await asyncio.sleep(0.05)
                assert "GET orders/x" in str(holdfast.tree())
                assert "secret" not in str(holdfast.tree())
                scope.cancel("enough")
                with pytest.raises(holdfast.Cancelled, match="enough"):
                    await task
                raise asyncio.CancelledError

    with pytest.raises(holdfast.Cancelled, match="enough"):
        run(main())
