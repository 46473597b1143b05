"""The health service of grpc follows a probe, and a host stops a server that has both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health as health_sync
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from holdfast import lifecycle
from holdfast.adapters.grpc_server import GrpcCarrier, GrpcHealthFeed, GrpcServer
from holdfast.domain.discovery.keepalive import Keepalive
from holdfast.domain.errors import UsageError
from holdfast.domain.lifecycle.negotiation import ShutdownRequest
from holdfast.runtime.clock import monotonic
from tests.adapters.embedding import SHUTDOWN
from tests.adapters.grpc_serving import ENDED, TOLD, shop, until

pytestmark = [pytest.mark.system, pytest.mark.real_time]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
STOP = ShutdownRequest("grpc", 0.0, SHUTDOWN)


class Probe:
    """Passes, fails, or takes for ever."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.takes = 0.0

    async def __call__(self) -> None:
        self.asked += 1
        await asyncio.sleep(self.takes)
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def fed(probe: Any, **options: Any) -> AsyncGenerator[tuple[GrpcHealthFeed, Any]]:
    """A server with a health service that follows the probe, and how to ask it."""
    server = grpc.aio.server(options=Keepalive().server_options())
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    feed = GrpcHealthFeed(health, probe, **{"every": 0.05, "timeout": 0.2, **options})
    await feed.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check

        async def status(service: str = "") -> Any:
            return (await check(health_pb2.HealthCheckRequest(service=service))).status

        yield feed, status
        await feed.prepare(STOP)
        assert await status() == NOT_SERVING
        await feed.stop(monotonic() + 1.0)
        await asyncio.sleep(TOLD)
    await server.stop(None)


async def becomes(status: Any, wanted: Any, service: str = "") -> None:
    async def ask() -> None:
        while await status(service) != wanted:  # noqa: ASYNC110 - another process's, so to say
            await asyncio.sleep(0.01)

    await asyncio.wait_for(ask(), ENDED)


async def test_it_turns_with_the_probe_for_every_service() -> None:
    probe, told = Probe(), []
    both = ("", "shop.Orders")
    async with fed(probe, services=both, observer=lambda r: told.append((r.ready, r.why))) as (
        feed,
        status,
    ):
        for service in both:
            assert await status(service) == SERVING
        probe.error = OSError("the database is gone")
        for service in both:
            await becomes(status, NOT_SERVING, service)
        assert feed.report is not None
        assert "probe is down" in feed.report.why
        probe.error = None
        await becomes(status, SERVING)
        with pytest.raises(grpc.aio.AioRpcError):
            await status("shop.Other")
    assert told == [(True, ""), (False, "probe is down"), (True, ""), (False, "the process stops")]


async def test_a_probe_that_hangs_is_late() -> None:
    probe = Probe()
    async with fed(probe) as (_, status):
        assert await status() == SERVING
        probe.takes = 1000.0
        await becomes(status, NOT_SERVING)
        probe.takes = 0.0
        await becomes(status, SERVING)


async def test_at_first_it_is_what_the_first_probe_found() -> None:
    probe = Probe()
    probe.error = OSError("not yet")
    async with fed(probe, every=1000.0) as (_, status):
        assert await status() == NOT_SERVING
        assert probe.asked == 1


async def test_a_plain_probe_runs_in_a_thread_and_false_is_no() -> None:
    answers = [True]
    threads: list[str] = []

    def probe() -> bool:
        threads.append(threading.current_thread().name)
        return answers[0]

    async with fed(probe) as (_, status):
        assert await status() == SERVING
        answers[0] = False
        await becomes(status, NOT_SERVING)
        assert threading.main_thread().name not in threads


async def test_the_checks_of_a_host_can_be_the_probe() -> None:
    health = lifecycle.Health(cache=0.0)
    probe = Probe()
    health.check("stock", probe)
    async with fed(health) as (feed, status):
        assert await status() == SERVING
        probe.error = OSError("no stock")
        await becomes(status, NOT_SERVING)
        assert feed.report is not None
        assert feed.report.why == "stock is down"


async def test_the_health_service_of_threads_is_fed_too() -> None:
    servicer = health_sync.HealthServicer()
    feed = GrpcHealthFeed(servicer, Probe(), every=1000.0)
    await feed.start()
    try:
        found = servicer.Check(health_pb2.HealthCheckRequest(service=""), None)
        assert found.status == SERVING
    finally:
        await feed.stop(monotonic())
    found = servicer.Check(health_pb2.HealthCheckRequest(service=""), None)
    assert found.status == NOT_SERVING


async def test_what_observers_and_services_do_wrong_does_not_end_it() -> None:
    class Broken:
        def __init__(self) -> None:
            self.said: list[int] = []

        def set(self, service: str, status: int) -> None:
            self.said.append(status)
            if len(self.said) == 2:
                raise OSError("as asked")

    async def observer(report: lifecycle.HealthReport) -> None:
        raise ValueError("as asked")

    broken, probe = Broken(), Probe()
    feed = GrpcHealthFeed(broken, probe, every=0.02, observer=observer)
    await feed.start()
    try:
        probe.error = OSError("gone")
        await until(lambda: len(broken.said) == 2)
        probe.error = None
        await until(lambda: len(broken.said) == 3)
        assert broken.said == [SERVING, NOT_SERVING, SERVING]
    finally:
        await feed.stop(monotonic())


class Stubborn:
    """A service that does not take everything up at once."""

    def __init__(self, *fails: int) -> None:
        self.fails = set(fails)
        self.tries = 0
        self.says: dict[str, int] = {}

    def set(self, service: str, status: int) -> None:
        self.tries += 1
        if self.tries in self.fails:
            raise OSError("as asked")
        self.says[service] = status


async def test_what_a_service_did_not_take_up_is_said_again_until_it_has() -> None:
    service, probe = Stubborn(3, 5), Probe()
    feed = GrpcHealthFeed(service, probe, services=("a", "b"), every=0.02)
    await feed.start()
    assert service.says == {"a": SERVING, "b": SERVING}
    probe.error = OSError("gone")
    await until(lambda: service.says == {"a": NOT_SERVING, "b": NOT_SERVING})
    await feed.stop(monotonic())
    assert service.tries == 6


async def test_a_service_that_fails_at_the_stop_is_told_once_more() -> None:
    service = Stubborn(2)
    feed = GrpcHealthFeed(service, Probe(), every=1000.0)
    await feed.start()
    await feed.prepare(STOP)
    assert service.says == {"": SERVING}
    await feed.stop(monotonic())
    assert service.says == {"": NOT_SERVING}


async def test_an_observer_that_hangs_holds_up_nothing() -> None:
    asked: list[bool] = []

    async def observer(report: lifecycle.HealthReport) -> None:
        asked.append(report.ready)
        if not report.ready:
            await asyncio.sleep(1000.0)

    service, probe = Stubborn(), Probe()
    feed = GrpcHealthFeed(service, probe, every=0.02, timeout=1000.0, observer=observer)
    await feed.start()
    probe.error = OSError("gone")
    await until(lambda: asked == [True, False])
    assert service.says == {"": NOT_SERVING}
    probe.error = None
    await until(lambda: service.says == {"": SERVING})
    await asyncio.wait_for(feed.prepare(STOP), ENDED)
    assert service.says == {"": NOT_SERVING}
    await asyncio.wait_for(feed.stop(monotonic() + 0.1), ENDED)


async def test_a_registration_that_fails_is_tried_again_and_ends_where_the_probe_is() -> None:
    class Registry:
        """As a registration would do it: by calls to a registry that fails now and then."""

        def __init__(self) -> None:
            self.calls: list[str] = []
            self.registered = False

        async def follow(self, report: lifecycle.HealthReport) -> None:
            self.calls.append("register" if report.ready else "leave")
            if len(self.calls) in (1, 3, 4):
                raise ConnectionError("the registry is away")
            if len(self.calls) == 6:
                await asyncio.sleep(1000.0)
            self.registered = report.ready

    registry, probe = Registry(), Probe()
    feed = GrpcHealthFeed(Stubborn(), probe, every=0.02, timeout=0.2, observer=registry.follow)
    await feed.start()
    await until(lambda: registry.registered)
    assert registry.calls == ["register"] * 2
    probe.error = OSError("gone")
    await until(lambda: not registry.registered)
    assert registry.calls[2:] == ["leave"] * 3
    probe.error = None
    await until(lambda: registry.registered)
    assert registry.calls[5:] == ["register"] * 2  # the first was late
    await feed.prepare(STOP)
    await asyncio.wait_for(feed.stop(monotonic() + ENDED), ENDED)
    assert not registry.registered


@pytest.mark.parametrize("wrong", [{"every": 0.0}, {"timeout": -1.0}])
async def test_it_needs_positive_times(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        GrpcHealthFeed(health_aio.HealthServicer(), Probe(), **wrong)


async def test_a_host_with_all_of_it_stops_well() -> None:
    async with shop() as (served, channel):
        health = health_aio.HealthServicer()
        host = lifecycle.Host("shop")
        host.add("health", GrpcHealthFeed(health, Probe(), every=0.05), serves=False)

        class Started(GrpcServer):
            async def start(self) -> None:
                """The shop has started it."""

        host.add("grpc", Started(served.inner, calls=served.carrier, health=health, lame_duck=0.1))
        await host.start()
        method = channel.unary_unary("/shop.Orders/One")
        running = asyncio.ensure_future(method(b"0.5"))
        await served.arrived()
        host.stop("for this test")
        await served.carrier.stop_begun()
        assert await asyncio.wait_for(host.ended(), ENDED) is lifecycle.ExitCode.CLEAN
        assert await running == b"one"
        assert isinstance(served.carrier, GrpcCarrier)
