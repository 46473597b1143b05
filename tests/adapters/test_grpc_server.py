"""What the carrier of a grpc.aio server reads, bounds, answers and counts."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import holdfast
from holdfast import lifecycle
from holdfast.adapters.grpc_client import open_channel
from holdfast.adapters.grpc_server import GrpcCarrier, stop_begun, stopping
from holdfast.adapters.grpc_server.rpc import ahead
from holdfast.domain.cause import CauseKind
from holdfast.domain.discovery.keepalive import Keepalive
from holdfast.domain.errors import UsageError
from holdfast.domain.policy import DEFAULT_POLICY, Limits, Policy, Route
from holdfast.domain.wire.problem import CAUSE_HEADER
from holdfast.domain.wire.richstatus import DETAILS_KEY, parse_status
from holdfast.testing.proxy import FaultProxy
from tests.adapters.grpc_serving import (
    ENDED,
    KINDS,
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
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
EXACT = "x-envoy-expected-rq-timeout-ms"


def short(seconds: float, **more: Any) -> Policy:
    return Policy(routes=(Route("/shop.Orders/*", {"request": seconds, **more}),))


# -- what it reads -------------------------------------------------------------------------------


async def test_identity_comes_from_the_metadata_and_the_stage_where_it_is_trusted() -> None:
    sent = (
        ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),
        ("x-request-id", "order-17"),
        ("x-release-stage", "canary"),
        ("baggage", "tenant=acme"),
        ("some-bin", b"\xff"),
    )
    for trust in (False, True):
        wire = replace(DEFAULT_POLICY.wire, trust_stage=trust)
        async with shop(replace(DEFAULT_POLICY, wire=wire)) as (served, channel):
            method = channel.unary_unary("/shop.Orders/One")
            made = method(b"0", metadata=grpc.aio.Metadata(*sent))
            await made
            context = served.seen[0].context
            assert context.identity.trace_id == TRACE
            assert context.identity.parent_id == "00f067aa0ba902b7"
            assert context.stage == ("canary" if trust else "")
            assert context.baggage == {"tenant": "acme"}
            assert "server-timing" in named(await made.trailing_metadata())
            assert context.identity.echo_id == "order-17"


@pytest.mark.parametrize(
    ("value", "left", "malformed"), [("2500", 2.5, 0), ("soon", 10.0, 1), ("999999", 10.0, 0)]
)
async def test_a_header_of_the_time_left_counts_too(
    value: str, left: float, malformed: int
) -> None:
    async with shop() as (served, channel):
        method = channel.unary_unary("/shop.Orders/One")
        await method(b"0", metadata=((EXACT, value),))
        assert left - 1.0 < served.seen[0].left <= left
        assert served.carrier.counts["malformed_header"] == malformed


async def test_the_policy_caps_by_the_path_of_the_method() -> None:
    policy = Policy(
        routes=(
            Route("/shop.Orders/One", {"request": 0.2}, name="one"),
            Route("/shop.Orders/Ticks", {"request": 0.3}, stream=False),
        )
    )
    async with shop(policy) as (served, channel):
        for kind in ("One", "Ticks"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await asyncio.wait_for(call(channel, kind, LONG, timeout=60.0), ENDED)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # The caller has time left: another try may do better, so the header is not there.
            assert CAUSE_HEADER not in metadata_of(failed.value)
            assert DETAILS_KEY in metadata_of(failed.value)
        assert served.carrier.counts["ended.deadline"] == 2


async def test_a_policy_that_is_replaced_holds_for_new_calls() -> None:
    async with shop() as (served, channel):
        running = asyncio.ensure_future(call(channel, "One", 0.5))
        await served.arrived()
        served.carrier.policy = short(0.1)
        assert served.carrier.policy.service == "orders"
        with pytest.raises(grpc.aio.AioRpcError):
            await call(channel, "One", LONG)
        assert await running == [b"one"]
        served.carrier.policy = replace(short(0.1), mode="off")
        assert await call(channel, "One", 0.2) == [b"one"]
        assert served.seen[-1].left == float("inf")


async def test_what_is_only_observed_is_counted_and_not_cut() -> None:
    async with shop(replace(short(0.05), mode="observe")) as (served, channel):
        assert await call(channel, "One", 0.2) == [b"one"]
        assert await call(channel, "One", 0.0) == [b"one"]
        assert served.carrier.counts["would_exceed"] == 1
        assert served.seen[0].left == float("inf")


async def test_an_idle_stream_is_ended_and_a_busy_one_is_not() -> None:
    async def busy(requests: Any, context: Any) -> Any:
        async for request in requests:
            await asyncio.sleep(float(request))
            yield b"tick"

    policy = short(10.0, idle=0.4)
    async with shop(policy, chat_Busy=busy) as (served, channel):
        made = channel.stream_stream("/shop.Orders/Busy")(iter([b"0.1"] * 8))
        assert len(await asyncio.wait_for(answers(made), ENDED)) == 8
        for kind in KINDS[1:]:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await asyncio.wait_for(call(channel, kind, LONG), ENDED)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "nothing was sent or read for 400 ms" in (failed.value.details() or "")
        assert served.carrier.counts["ended.deadline"] == len(KINDS) - 1


# -- how it refuses ------------------------------------------------------------------------------


async def test_a_call_that_expired_while_the_loop_was_busy_is_not_begun() -> None:
    async with shop() as (served, _):
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:

            def late(kind: str) -> grpc.StatusCode:
                try:
                    made: Any = begin(channel, kind, 0.0, timeout=0.2)
                    list(made)
                except grpc.RpcError as error:
                    return error.code()  # type: ignore[attr-defined, no-any-return]
                return grpc.StatusCode.OK

            await asyncio.to_thread(begin, channel, "One", 0.0, 5.0)
            calls = [asyncio.ensure_future(asyncio.to_thread(late, kind)) for kind in KINDS[1:3]]
            await asyncio.sleep(0)
            time.sleep(0.6)  # noqa: ASYNC251 - that is the point
            codes = await asyncio.gather(*calls)
            assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
        await asyncio.sleep(0.1)
        assert len(served.seen) == 1


async def test_a_call_with_too_little_left_is_refused() -> None:
    async with shop(short(10.0, refuse_below=0.5)) as (served, channel):
        for kind in KINDS:
            code, text, said = await refused(channel, kind, 0.4)
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "not begun" in text
            assert CAUSE_HEADER in said
        assert served.seen == []
        assert served.carrier.counts["refused.too_little"] == len(KINDS)
        assert await call(channel, "One", 0.0, timeout=5.0) == [b"one"]


# -- how it answers ------------------------------------------------------------------------------


async def test_everybody_can_read_why_a_call_has_ended() -> None:
    async with shop(short(0.2)) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(channel, "One", LONG)
        status = await rpc_status_of(failed.value)
        assert status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert status.message == failed.value.details()
        info = error_details_pb2.ErrorInfo()
        (detail,) = status.details
        assert detail.Unpack(info)
        assert (info.reason, info.domain) == ("DEADLINE_EXCEEDED", "holdfast")
        assert info.metadata["scope"] == "grpc /shop.Orders/One"
        assert info.metadata["hop"] == "orders"
        assert float(info.metadata["budget_ms"]) <= 200
        said = metadata_of(failed.value)
        assert said["server-timing"].startswith("orders;dur=")
        assert len(said["x-request-id"]) == 32


async def rpc_status_of(error: grpc.aio.AioRpcError) -> Any:
    """By the library of Google; a status that contradicts itself raises there."""

    class Like:
        def trailing_metadata(self) -> Any:
            return tuple(error.trailing_metadata() or ())

        def code(self) -> Any:
            return error.code()

        def details(self) -> Any:
            return error.details()

    found: Any = rpc_status.from_call(Like())  # type: ignore[arg-type]
    assert found is not None
    return found


async def test_without_details_no_name_is_told() -> None:
    policy = short(0.2)
    policy = replace(policy, wire=replace(policy.wire, details=False))
    async with shop(policy) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(channel, "One", LONG)
        assert failed.value.details() == "the deadline of the call is spent"
        said = metadata_of(failed.value)
        assert "server-timing" not in said
        assert b"orders" not in said[DETAILS_KEY]
        assert b"shop" not in said[DETAILS_KEY]
        cause = parse_status(said[DETAILS_KEY])
        assert cause is not None
        assert (cause.kind, cause.scope, cause.hop) == (CauseKind.DEADLINE, "", "")


async def test_what_a_hop_below_says_is_passed_on() -> None:
    async with shop() as (below, _):

        async def relay(request: bytes, context: Any) -> bytes:
            async with open_channel(f"127.0.0.1:{below.port}", service="stock") as channel:
                found: bytes = await channel.unary_unary("/shop.Orders/One")(request)
                return found

        async with shop(one_Relay=relay) as (_, channel):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(channel, "Relay", LONG, timeout=1.0)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            cause = parse_status(metadata_of(failed.value).get(DETAILS_KEY, b""))
            if cause is not None and cause.below:  # on a busy machine there is no time to hear it
                assert cause.below[0].scope == "grpc /shop.Orders/One"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_the_handler_stays_its_own(kind: str) -> None:
    async with shop() as (served, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await answers(begin_with(channel, kind, b"not a number"))
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
        assert "ValueError" in (failed.value.details() or "")
        assert served.carrier.in_flight == 0


def begin_with(channel: Any, kind: str, request: bytes) -> Any:
    class Text(float):
        def __str__(self) -> str:
            return request.decode()

    return begin(channel, kind, Text(0))


async def test_a_handler_that_aborts_does_it_its_way() -> None:
    async def refuse(request: bytes, context: Any) -> None:
        context.set_trailing_metadata((("why", "stockout"),))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "there is none left")

    async with shop(one_Refuse=refuse) as (served, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(channel, "Refuse", 0.0)
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert failed.value.details() == "there is none left"
        assert metadata_of(failed.value)["why"] == "stockout"
        assert served.carrier.in_flight == 0


async def test_its_own_trailing_metadata_are_kept() -> None:
    async def say(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("mine", "yes"),))
        await asyncio.sleep(float(request))
        return b""

    async with shop(short(0.3), one_Say=say) as (_, channel):
        made = begin(channel, "Say", 0.0, metadata=(("x-request-id", "order-17"),))
        await made
        said = named(await made.trailing_metadata())
        assert said["mine"] == "yes"
        assert "server-timing" in said
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(channel, "Say", LONG)
        assert metadata_of(failed.value)["mine"] == "yes"
        assert DETAILS_KEY in metadata_of(failed.value)


async def test_a_handler_that_is_cancelled_by_somebody_else_is_answered() -> None:
    # By grpc alone its client would wait for ever.
    async def lost(request: bytes, context: Any) -> bytes:
        raise asyncio.CancelledError

    async with shop(one_Lost=lost) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(call(channel, "Lost", 0.0), ENDED)
        assert failed.value.code() is grpc.StatusCode.CANCELLED
        assert "the handler was cancelled" in (failed.value.details() or "")


async def test_a_time_out_of_asyncio_is_not_taken_for_a_client_that_has_gone() -> None:
    causes: list[Any] = []

    async def patient(request: bytes, context: Any) -> bytes:
        scope = holdfast_scope()
        try:
            async with asyncio.timeout(0.05):
                try:
                    await asyncio.sleep(LONG)
                except asyncio.CancelledError:
                    causes.append(scope.reached())
                    raise
        except TimeoutError:
            return b"in time"
        return b""

    async with shop(one_Patient=patient) as (_, channel):
        assert await call(channel, "Patient", 0.0) == [b"in time"]
        assert causes == [None]


def holdfast_scope() -> Any:
    from holdfast.runtime.scope import ambient

    return ambient()


async def test_what_a_handler_has_started_ends_with_a_client_that_goes() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            ended.append(name)
            raise

    async def fan(request: bytes, context: Any) -> bytes:
        async with holdfast.tasks("fan") as group:
            group.start(work("a"))
            group.start(work("b"))
            await served.visit("Fan").wait(LONG)
        return b""

    async with shop(one_Fan=fan) as (served, channel):
        made = begin(channel, "Fan", 0.0)
        seen = await served.arrived()
        made.cancel()
        await until(lambda: len(ended) == 2)
        await served.idle()
        assert sorted(ended) == ["a", "b"]
        assert seen.cause is not None
        assert seen.cause.kind is CauseKind.DISCONNECT


async def test_clean_up_may_wait_after_a_client_has_gone() -> None:
    done: list[str] = []

    async def careful(request: bytes, context: Any) -> bytes:
        seen = served.visit("Careful")
        try:
            async with holdfast.timeout(60.0, name="inner"):
                await seen.wait(LONG)
        finally:
            await asyncio.sleep(0.1)
            done.append("clean")
        return b""

    async with shop(one_Careful=careful) as (served, channel):
        made = begin(channel, "Careful", 0.0)
        await served.arrived()
        made.cancel()
        await served.idle()
        assert done == ["clean"]


# -- the time ------------------------------------------------------------------------------------


def test_how_far_ahead_of_grpc_a_handler_ends() -> None:
    assert ahead(1.0, False, False) == pytest.approx(0.01)
    assert ahead(0.02, False, False) == pytest.approx(0.002)
    assert ahead(1.0, True, True) == pytest.approx(0.02)
    assert ahead(30.0, True, True) == pytest.approx(0.11)
    assert ahead(30.0, True, False) == pytest.approx(1.01)
    assert ahead(20_000.0, True, True) == pytest.approx(100.01)


async def test_over_ten_hops_the_deadline_never_moves_later() -> None:
    hops: list[float] = []

    async def relay(request: bytes, context: Any) -> bytes:
        hops.append(holdfast.current().deadline)
        left = int(request) - 1
        if left:
            await channel.unary_unary("/shop.Orders/Relay")(b"%d" % left)
        return b""

    for budget in (30.0, 1.003, 0.7777):
        hops.clear()
        async with (
            shop(short(60.0), one_Relay=relay) as (served, _),
            open_channel(f"127.0.0.1:{served.port}") as channel,
        ):
            async with holdfast.timeout(budget):
                last = holdfast.current().deadline
                await channel.unary_unary("/shop.Orders/Relay")(b"10")
            assert len(hops) == 10
            for hop in hops:
                assert hop <= last
                last = hop
            await asyncio.sleep(0.05)


async def test_a_plain_caller_is_answered_before_it_gives_up() -> None:
    # The core of grpc in C sends a time-out that it has sent before, if that was a little longer.
    async with shop() as (served, channel):
        await call(channel, "One", 0.0, timeout=1.02)
        last = time.monotonic() + 1.0
        await call(channel, "One", 0.0, timeout=1.0)
        scope = served.seen[-1].scope
        assert scope is not None
        assert scope.deadline <= last


# -- a stop --------------------------------------------------------------------------------------


async def test_a_stream_is_told_of_the_stop() -> None:
    async def watch(request: bytes, context: Any) -> Any:
        assert not stopping()
        yield b"watching"
        await stop_begun()
        assert stopping()
        yield b"bye"

    async with shop(ticks_Watch=watch) as (served, channel):
        method = channel.unary_stream("/shop.Orders/Watch")
        streams = [method(b"") for _ in range(3)]
        made = method(b"")
        assert await made.read() == b"watching"
        running = [asyncio.ensure_future(answers(stream)) for stream in streams]
        await until(lambda: served.carrier.in_flight == 4)
        served.carrier.announce()
        served.carrier.announce()
        assert await asyncio.wait_for(made.read(), ENDED) == b"bye"
        await served.carrier.stop_begun()
        for each in running:
            assert await asyncio.wait_for(each, ENDED) == [b"watching", b"bye"]


def test_outside_of_a_call_there_is_no_stop_to_wait_for() -> None:
    with pytest.raises(UsageError, match="GrpcCarrier"):
        stopping()


# -- nothing is left -----------------------------------------------------------------------------


async def storm(count: int) -> None:
    async with shop(Policy(defaults=Limits(request=20.0))) as (served, channel):

        async def one(number: int) -> str:
            kind = KINDS[number % len(KINDS)]
            if number % 3 == 0:
                made = begin(channel, kind, 0.0, timeout=30.0)
                try:
                    return "done" if await answers(made) else ""
                except grpc.aio.AioRpcError as error:
                    # grpc turns some away by itself where hundreds are reset at once.
                    return "done" if error.code() is grpc.StatusCode.CANCELLED else str(error)
            if number % 3 == 1:
                made = begin(channel, kind, LONG, timeout=0.2 + number % 7 / 20)
                with pytest.raises(grpc.aio.AioRpcError):
                    await answers(made)
                return "late"
            made = begin(channel, kind, LONG)
            running = asyncio.ensure_future(answers(made))
            await asyncio.sleep(0.1 + number % 11 / 30)
            made.cancel()
            await asyncio.wait([running])
            return "gone"

        ends = await asyncio.gather(*(one(number) for number in range(count)))
        assert set(ends) == {"done", "late", "gone"}
        await until(lambda: served.carrier.in_flight == 0, 30.0)
        assert all(seen.end != "" for seen in served.seen if seen.waits)
        assert await asyncio.wait_for(call(channel, "One", 0.0), ENDED) == [b"one"]
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found).__name__ == "Rpc" and
                found.outcome is None and found.opened_at]  # fmt: skip


async def test_many_calls_at_once_leave_nothing() -> None:
    await storm(240)


@pytest.mark.soak
async def test_two_thousand_calls_at_once_leave_nothing() -> None:
    await storm(2000)


def test_a_carrier_is_one_interceptor() -> None:
    assert isinstance(GrpcCarrier(), grpc.aio.ServerInterceptor)


async def test_a_client_behind_a_dead_line_is_noticed_by_keepalive() -> None:
    keepalive = Keepalive(time=1.0, timeout=0.5)
    async with shop(options=keepalive.server_options()) as (served, _):
        with FaultProxy("127.0.0.1", served.port) as proxy:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
                running = [
                    asyncio.ensure_future(call(channel, kind, LONG)) for kind in ("One", "Ticks")
                ]
                await served.arrived(2)
                proxy.to_server.stall()
                proxy.to_client.stall()
                await until(lambda: all(seen.end for seen in served.seen), 20.0)
                causes = [seen.cause for seen in served.seen]
                assert [cause and cause.kind for cause in causes] == [CauseKind.DISCONNECT] * 2
                proxy.reset()
                await asyncio.wait(running)
                for each in running:
                    assert isinstance(each.exception(), grpc.aio.AioRpcError)


async def test_a_server_that_was_started_within_a_scope_is_bound_by_it() -> None:
    with pytest.raises(holdfast.DeadlineExceeded):  # noqa: PT012 - it ends around the server
        async with holdfast.timeout(1.0, name="run"), shop() as (served, channel):
            assert await call(channel, "One", 0.0) == [b"one"]
            (seen,) = served.seen
            assert seen.left < 1.0
            assert seen.context.scope == "run/grpc /shop.Orders/One"
            await asyncio.sleep(LONG)


async def test_what_is_to_be_done_at_the_end_of_a_call_is_done() -> None:
    ends: list[tuple[str, Any]] = []

    async def tidy(request: bytes, context: Any) -> bytes:
        lifecycle.at_end(lambda outcome, cause: ends.append((outcome, cause and cause.kind)))
        await served.visit("Tidy").wait(float(request))
        return b"tidy"

    async with shop(one_Tidy=tidy) as (served, channel):
        assert await call(channel, "Tidy", 0.0) == [b"tidy"]
        made = begin(channel, "Tidy", LONG)
        await served.arrived(2)
        made.cancel()
        await until(lambda: len(ends) == 2)
        assert ends == [("done", None), ("cancelled", CauseKind.DISCONNECT)]


async def test_a_call_leaves_no_scope_in_the_tree() -> None:
    async with shop() as (served, channel):
        running = asyncio.ensure_future(call(channel, "One", 0.3))
        await served.arrived()
        await until(lambda: "grpc /shop.Orders/One" in str(holdfast.tree()))
        await running
        assert "grpc /shop.Orders/One" not in str(holdfast.tree())
