"""Every kind of call of grpc.aio, and every way in which it can end."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from typing import Any

import grpc
import grpc.aio
import pytest

from holdfast.adapters.grpc_server import GrpcServer
from holdfast.domain.cause import CauseKind
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.domain.wire.problem import CAUSE_HEADER
from holdfast.domain.wire.richstatus import DETAILS_KEY, parse_status
from holdfast.runtime.clock import monotonic
from tests.adapters.embedding import SHUTDOWN
from tests.adapters.grpc_serving import (
    ENDED,
    KINDS,
    Shop,
    answers,
    begin,
    call,
    metadata_of,
    named,
    refused,
    shop,
    until,
)

pytestmark = [pytest.mark.system, pytest.mark.real_time]

LONG = 1000.0


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_served(kind: str) -> None:
    async with shop() as (served, channel):
        made = begin(channel, kind, 0.0, timeout=60.0, metadata=(("x-request-id", "order-17"),))
        assert (await asyncio.wait_for(answers(made), ENDED))[-1] in (b"one", b"last", b"sum")
        said = named(await made.trailing_metadata())
        assert said["server-timing"].startswith("orders;dur=")
        (seen,) = served.seen
        left = 60.0 if kind in KINDS[1:] else 10.0  # the policy bounds calls, and not streams
        assert 0.8 * left < seen.left < left
        assert seen.context.identity.echo_id == "order-17"
        assert seen.context.scope == f"grpc /shop.Orders/{kind}"
        assert served.carrier.in_flight == 0
        assert served.carrier.counts["ended.deadline"] == 0


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("kind", KINDS)
async def test_the_deadline_ends_it_and_the_answer_says_so(kind: str) -> None:
    async with shop() as (served, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(call(channel, kind, LONG, timeout=0.4), ENDED)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (seen,) = served.seen
        await until(lambda: seen.end != "")
        assert seen.end == "cancelled"
        assert seen.cause is not None
        assert seen.cause.kind is CauseKind.DEADLINE
        await served.idle()
        if kind == "Ticks":
            assert served.closed == ["Ticks"]
        said = metadata_of(failed.value)
        if said:  # on a machine that is busy, the client's own timer may be first
            assert "hop=orders" in said[CAUSE_HEADER]
            cause = parse_status(said[DETAILS_KEY])
            assert cause is not None
            assert (cause.kind, cause.hop) == (CauseKind.DEADLINE, "orders")
            assert cause.scope == f"grpc /shop.Orders/{kind}"
            assert f"'orders:grpc /shop.Orders/{kind}'" in (failed.value.details() or "")


@pytest.mark.real_time("asyncio", "uvloop")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_cancels_ends_it(kind: str) -> None:
    async with shop() as (served, channel):
        made = begin(channel, kind, LONG)
        seen = await served.arrived()
        made.cancel()
        await until(lambda: seen.end != "")
        assert seen.end == "cancelled"
        assert seen.cause is not None
        assert seen.cause.kind is CauseKind.DISCONNECT
        await served.idle()
        assert served.carrier.counts["disconnected"] == 1
        assert served.carrier.counts["ended.client_disconnected"] == 1
        assert await asyncio.wait_for(call(channel, "One", 0.0), ENDED) == [b"one"]


async def test_a_client_that_is_killed_ends_all_of_them() -> None:
    async with shop() as (served, _):
        program = textwrap.dedent(f"""
            import asyncio, grpc.aio
            from tests.adapters.grpc_serving import KINDS, call
            async def main():
                async with grpc.aio.insecure_channel("127.0.0.1:{served.port}") as channel:
                    await asyncio.gather(*(call(channel, kind, 1000.0) for kind in KINDS))
            asyncio.run(main())
        """)
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        try:
            await until(lambda: sum(s.waits for s in served.seen) == len(KINDS), 30.0)
        finally:
            client.send_signal(signal.SIGKILL)
            await client.wait()
        await until(lambda: all(seen.end for seen in served.seen))
        causes = [seen.cause for seen in served.seen]
        assert [cause and cause.kind for cause in causes] == [CauseKind.DISCONNECT] * len(KINDS)
        await served.idle()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_in_flight_at_the_end_of_the_drain_is_cut(kind: str) -> None:
    async with shop() as (served, channel):
        running = asyncio.ensure_future(call(channel, kind, LONG))
        seen = await served.arrived()
        server = GrpcServer(served.inner, calls=served.carrier, lame_duck=0.0)
        deadline = monotonic() + 0.6
        await server.prepare(ShutdownRequest("grpc", deadline, SHUTDOWN))
        assert served.carrier.stopping
        await asyncio.wait_for(server.stop(deadline), ENDED)
        assert seen.end == "cancelled"
        assert seen.cause is not None
        assert seen.cause.kind is CauseKind.SHUTDOWN
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await running
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        cause = parse_status(metadata_of(failed.value)[DETAILS_KEY])
        assert cause is not None
        assert cause.kind is CauseKind.SHUTDOWN
        assert CAUSE_HEADER not in metadata_of(failed.value)
        assert served.carrier.in_flight == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_new_ones_are_turned_away_then(kind: str) -> None:
    async with shop() as (served, channel):
        running = asyncio.ensure_future(call(channel, "One", 0.5))
        await served.arrived()
        served.carrier.close(lambda: None)
        code, text, _ = await asyncio.wait_for(refused(channel, kind), ENDED)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in text
        assert await running == [b"one"]
        assert len(served.seen) == 1


async def test_a_client_that_does_not_read_is_ended_too() -> None:
    async def flood(request: bytes, context: Any) -> Any:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            served.closed.append("flood")

    async with shop(ticks_Flood=flood) as (served, channel):
        made = channel.unary_stream("/shop.Orders/Flood")(b"", timeout=0.4)
        await made.read()
        await until(lambda: served.closed == ["flood"])
        assert served.carrier.counts["ended.deadline"] == 1
        made.cancel()
        await served.idle()


async def test_a_scope_within_a_generator_has_its_deadline() -> None:
    import holdfast

    async def ticks(request: bytes, context: Any) -> Any:
        yield b"first"
        try:
            async with holdfast.timeout(0.2, name="short"):
                await asyncio.sleep(LONG)
        except holdfast.DeadlineExceeded as error:
            yield error.cause.scope.encode()

    async with shop(ticks_Short=ticks) as (_, channel):
        made = channel.unary_stream("/shop.Orders/Short")(b"")
        found = await asyncio.wait_for(answers(made), ENDED)
        assert found == [b"first", b"grpc /shop.Orders/Short/short"]


async def test_a_handler_that_reads_only_some_of_what_comes_leaves_nothing() -> None:
    async def first(requests: Any, context: Any) -> bytes:
        async for request in requests:
            return request
        return b""

    async with shop(sum_First=first) as (served, channel):
        made = channel.stream_unary("/shop.Orders/First")(iter([b"a", b"b", b"c"]))
        assert await asyncio.wait_for(made, ENDED) == b"a"
        assert isinstance(served, Shop)
