"""Spans and metrics of calls, with a real SDK and a real registry, and the page that lists them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

import holdfast
from holdfast.adapters.opentelemetry import CALLS, PHASES, PREFIX, SpanTrails, attributes_of
from holdfast.adapters.prometheus import SECONDS, TIMEOUTS, MetricTrails
from holdfast.domain.context import Carried, Identity
from holdfast.domain.errors import UsageError
from holdfast.domain.phases import DEFAULT_SHARES, Ended, Phase, Trail
from holdfast.net import Dialer, Resolver
from holdfast.runtime.ambient import use
from holdfast.runtime.net.observers import Observers
from holdfast.testing import run_virtual

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "phases.md"
HTTP = (Phase.DNS, Phase.CONNECT, Phase.HEADER, Phase.BODY)


def call(last: Phase = Phase.BODY, ended: Ended = Ended.DONE, begun: float = 100.0) -> Trail:
    """A call of two seconds that was in each phase for a quarter of a second."""
    trail = Trail("GET http://orders.local/1", begun, begun + 2.0, client="httpx", route=HTTP)
    now = begun
    for phase in HTTP:
        trail.begin(phase, now)
        now += 0.25
        if phase is Phase.CONNECT:
            trail.tried("10.0.0.7:80", now - 0.25, now, "connected")
        if phase is last:
            trail.end(now, ended, "asked 10.0.0.53" if phase is Phase.DNS else "")
            break
    return trail


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> trace.Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("test")


@pytest.mark.parametrize("phase", HTTP)
def test_a_time_out_is_an_event_of_the_span(
    phase: Phase, tracer: trace.Tracer, spans: InMemorySpanExporter
) -> None:
    with tracer.start_as_current_span("order"):
        SpanTrails().call_ended(call(phase, Ended.TIMEOUT), TimeoutError())
    (span,) = spans.get_finished_spans()
    (event,) = span.events
    assert event.name == phase.event
    said = dict(event.attributes or {})
    assert said["holdfast.client"] == "httpx"
    assert said["holdfast.target"] == "GET http://orders.local/1"
    assert said["holdfast.phase"] == phase.value
    assert said["holdfast.took_s"] == 0.25
    assert said["holdfast.budget_s"] == 2.0
    assert said["error.type"] == "TimeoutError"
    gone_through = HTTP[: HTTP.index(phase) + 1]
    assert {key for key in said if key.startswith(PHASES)} == {
        f"{PHASES}{one.value}" for one in gone_through
    }
    assert ("holdfast.addresses" in said) is (phase is not Phase.DNS)


def test_what_all_calls_of_a_span_took_is_added_up(
    tracer: trace.Tracer, spans: InMemorySpanExporter
) -> None:
    observer = SpanTrails()
    with tracer.start_as_current_span("order"):
        observer.call_ended(call(), None)
        observer.call_ended(call(Phase.DNS, Ended.TIMEOUT), TimeoutError())
    with tracer.start_as_current_span("another"):
        observer.call_ended(call(), None)
    one, other = spans.get_finished_spans()
    assert dict(one.attributes or {}) == {
        CALLS: 2,
        f"{PHASES}dns.resolve": 0.5,
        **{f"{PHASES}{phase.value}": 0.25 for phase in HTTP[1:]},
    }
    assert (other.attributes or {})[CALLS] == 1
    assert [event.name for event in one.events] == ["dns.resolve.timeout"]


def test_a_call_that_was_cancelled_or_failed_says_where(
    tracer: trace.Tracer, spans: InMemorySpanExporter
) -> None:
    observer = SpanTrails(durations=False)
    with tracer.start_as_current_span("order"):
        observer.call_ended(call(Phase.HEADER, Ended.CANCELLED), None)
        observer.call_ended(call(Phase.CONNECT, Ended.FAILED), ConnectionRefusedError())
        observer.call_ended(call(), None)
    (span,) = spans.get_finished_spans()
    assert [e.name for e in span.events] == ["http.header.cancelled", "tcp.connect.failed"]
    assert not span.attributes


def test_no_limit_is_no_attribute() -> None:
    trail = Trail("x:1", 5.0)
    trail.begin(Phase.DNS, 5.0)
    trail.end(6.0, Ended.FAILED)
    assert attributes_of(trail, trail.steps[0]) == {
        "holdfast.target": "x:1",
        "holdfast.phase": "dns.resolve",
        "holdfast.took_s": 1.0,
        "holdfast.elapsed_s": 1.0,
        "holdfast.bytes_sent": 0,
        "holdfast.bytes_received": 0,
        "holdfast.redirects": 0,
        "holdfast.interim_status": 0,
        "holdfast.phases.dns.resolve": 1.0,
    }


def test_without_a_span_nothing_happens(spans: InMemorySpanExporter) -> None:
    SpanTrails().call_ended(call(Phase.DNS, Ended.TIMEOUT), None)
    assert not spans.get_finished_spans()


def test_a_span_that_has_ended_is_left_alone(
    tracer: trace.Tracer, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    span = tracer.start_span("order")
    with trace.use_span(span):
        span.end()
        SpanTrails().call_ended(call(Phase.DNS, Ended.TIMEOUT), None)
    assert not spans.get_finished_spans()[0].events
    assert not caplog.records


def test_metrics_by_client_and_phase() -> None:
    registry = CollectorRegistry()
    observer = MetricTrails(registry)
    observer.call_ended(call(), None)
    observer.call_ended(call(), None)
    observer.call_ended(call(Phase.CONNECT, Ended.TIMEOUT), TimeoutError())
    observer.call_ended(call(Phase.CONNECT, Ended.CANCELLED), None)

    def value(name: str, phase: Phase) -> float | None:
        return registry.get_sample_value(name, {"client": "httpx", "phase": phase.value})

    assert value(f"{SECONDS}_count", Phase.CONNECT) == 4
    assert value(f"{SECONDS}_sum", Phase.CONNECT) == 1.0
    assert value(f"{SECONDS}_count", Phase.BODY) == 2
    assert value(TIMEOUTS, Phase.CONNECT) == 1
    assert value(TIMEOUTS, Phase.BODY) is None
    text = generate_latest(registry).decode()
    assert f'{TIMEOUTS}{{client="httpx",phase="tcp.connect"}} 1.0' in text
    assert f'{SECONDS}_bucket{{client="httpx",le="0.25",phase="tcp.connect"}} 4.0' in text


def test_a_time_out_leads_to_its_trace() -> None:
    registry = CollectorRegistry()
    observer = MetricTrails(registry)
    late = call(Phase.HEADER, Ended.TIMEOUT)

    async def request() -> None:
        async with use(Carried(Identity("c0ffee" + "0" * 26))):
            observer.call_ended(late, TimeoutError())

    run_virtual(request())
    (line,) = [
        line for line in openmetrics(registry).decode().splitlines() if line.startswith(TIMEOUTS)
    ]
    assert 'trace_id="c0ffee' in line


def test_a_registry_has_them_once() -> None:
    registry = CollectorRegistry()
    MetricTrails(registry)
    with pytest.raises(UsageError, match="give it to all clients"):
        MetricTrails(registry)


def test_wrong_buckets_are_told_by_the_library() -> None:
    with pytest.raises(ValueError, match="Buckets not in sorted order"):
        MetricTrails(CollectorRegistry(), buckets=(2.0, 1.0))


class Broken:
    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        raise KeyError("broken")


class Kept:
    def __init__(self) -> None:
        self.calls: list[tuple[Trail, BaseException | None]] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.calls.append((trail, error))


def test_one_observer_does_not_keep_it_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    first, last = Kept(), Kept()
    trail = call()
    Observers(first, Broken(), last).call_ended(trail, None)
    assert first.calls == last.calls == [(trail, None)]
    (record,) = caplog.records
    assert "Broken" in record.getMessage()


class Silent:
    """A name server that never answers."""

    kinds = ("A",)
    asks = "10.0.0.53"

    def start(self, name: str, kind: str, done: object) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_dial_that_ran_out_of_time_is_told(
    tracer: trace.Tracer, spans: InMemorySpanExporter
) -> None:
    registry = CollectorRegistry()
    observer = Observers(SpanTrails(), MetricTrails(registry))

    async def dial() -> None:
        dialer = Dialer(resolver=Resolver(Silent()), observer=observer)
        with tracer.start_as_current_span("order"):
            async with holdfast.timeout(0.75, name="order"):
                await dialer.connect("orders.test", 80)

    with pytest.raises(holdfast.DeadlineExceeded) as caught:
        run_virtual(dial())
    assert caught.value.phase is Phase.DNS
    (event,) = (e for e in spans.get_finished_spans()[0].events if e.name != "exception")
    assert event.name == "dns.resolve.timeout"
    said = dict(event.attributes or {})
    assert said["holdfast.target"] == "orders.test:80"
    assert said["holdfast.took_s"] == pytest.approx(0.75)
    assert "10.0.0.53" in str(said["holdfast.detail"])
    labels = {"client": "holdfast", "phase": "dns.resolve"}
    assert registry.get_sample_value(TIMEOUTS, labels) == 1


# -- the page ------------------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading of the page."""
    text = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_page_lists_every_phase_with_its_event_and_share() -> None:
    listed = {names(row[0])[0]: row for row in rows("Phases")}
    assert list(listed) == [phase.value for phase in Phase]
    for phase in Phase:
        row = listed[phase.value]
        assert names(row[1]) == [phase.event]
        bounded = phase in DEFAULT_SHARES.bounded
        floor = DEFAULT_SHARES.floors.get(phase)
        weight = DEFAULT_SHARES.weights.get(phase)
        assert row[3] == ("" if weight is None else f"{weight * 100:.0f}")
        assert row[4] == ("" if floor is None else f"{floor:g} s")
        assert row[5] == ("a limit" if bounded else "")


def test_the_page_lists_every_attribute() -> None:
    trail = call(Phase.CONNECT, Ended.TIMEOUT)
    trail.end(102.0)
    everything = attributes_of(trail, trail.steps[0]._replace(detail="x"), TimeoutError())
    assert all(key.startswith(PREFIX) or key == "error.type" for key in everything)
    listed = [name for row in rows("On spans") for name in names(row[0])]
    said = [key for key in everything if not key.startswith(PHASES)]
    assert sorted(listed) == sorted([*said, f"{PHASES}PHASE", CALLS])


def test_the_page_lists_every_metric() -> None:
    registry = CollectorRegistry()
    MetricTrails(registry)
    listed = [names(row[0])[0] for row in rows("Metrics")]
    families = {family.name: family.type for family in registry.collect()}
    assert listed == [SECONDS, TIMEOUTS]
    assert families == {SECONDS: "histogram", TIMEOUTS.removesuffix("_total"): "counter"}
