"""What is done the short way for every request comes to the same as the long way."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

import holdfast
from holdfast.adapters.asgi import HealthPages, HoldfastMiddleware
from holdfast.domain.policy import policy_from_mapping
from holdfast.domain.wire.inbound import InboundCodec
from holdfast.domain.wire.timing import hop_timing, timing_prefix
from holdfast.runtime.clock import fresh_trace_id
from holdfast.testing import run_virtual

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
Headers = list[tuple[bytes, bytes]]


def test_short_times_are_written_as_long_ones() -> None:
    prefix = timing_prefix("shop")
    for tenths in range(0, 110_000, 7):
        spent = tenths * 1e-7
        written = hop_timing("shop", prefix, spent)
        assert abs(float(written.removeprefix(b"shop;dur=")) - spent * 1e3) <= 0.00501
        assert written.partition(b".")[2].isdigit()
        assert len(written.partition(b".")[2]) == 2
    assert hop_timing("shop", prefix, 0.0) == b"shop;dur=0.00"
    assert hop_timing("shop", prefix, 0.00999) == b"shop;dur=9.99"
    assert hop_timing("shop", prefix, 0.01) == b"shop;dur=10.00"
    assert hop_timing("shop", prefix, -0.001) == b"shop;dur=-1.00"


def test_trace_ids_are_drawn_many_at_a_time_and_never_twice() -> None:
    ids = [fresh_trace_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert {len(found) for found in ids} == {32}
    assert all(int(found, 16) for found in ids)
    # Every digit is random: the last ones decide whether a trace is sampled.
    for place in range(32):
        digits = Counter(found[place] for found in ids)
        assert len(digits) == 16
        assert max(digits.values()) < 1000


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"host", b"x"), (b"accept", b"*/*")],
        [(b"host", b"x"), (b"x-request-id", b"mine"), (b"x-request-id", b"mine")],
        [(b"b3", b"0"), (b"grpc-timeout", b"1S"), (b"traceparent", b"?"), (b"baggage", b"a=b")],
    ],
)
def test_only_what_is_ours_is_read(headers: Headers) -> None:
    codec = InboundCodec()
    left, malformed, ours = codec.glance(headers)
    assert codec.read(ours) == codec.read(headers)
    assert codec.glance(ours) == (left, malformed, ours)
    assert codec.echo(ours) == codec.echo(headers)
    assert bool(ours) == (len(headers) > 2)


@pytest.mark.parametrize("headers", [[], [(b"traceparent", f"00-{TRACE}-{'1' * 16}-01".encode())]])
@pytest.mark.parametrize("when", ["before", "after", "both", "never"])
def test_a_response_shows_the_name_that_the_handler_sees(headers: Headers, when: str) -> None:
    seen: list[str] = []
    shown: Headers = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if when in ("before", "both"):
            seen.append(holdfast.current().identity.trace_id)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if when in ("after", "both"):
            seen.append(holdfast.current().identity.trace_id)
        await send({"type": "http.response.body"})

    async def send(message: Mapping[str, Any]) -> None:
        shown.extend(message.get("headers", ()))

    async def main() -> None:
        scope: Any = {"type": "http", "method": "GET", "path": "/", "headers": headers}
        await HoldfastMiddleware(app)(scope, _nobody, send)

    run_virtual(main())
    name = dict(shown)[b"x-request-id"].decode()
    assert len(name) == 32
    assert set(seen) <= {name}
    assert name == TRACE or not headers


def test_no_trace_is_sampled_where_none_should_be() -> None:
    policy = policy_from_mapping({"identity": {"sample": 0.0}})
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(holdfast.current().identity.sampled)

    async def main() -> None:
        scope: Any = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await HoldfastMiddleware(app, policy)(scope, _nobody, _nobody)

    run_virtual(main())
    assert seen == [False]


async def test_pages_of_health_hand_on_without_a_step_of_their_own() -> None:
    async def report() -> Mapping[str, Any]:
        return {}

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    pages = HealthPages(app, report)
    assert inspect.iscoroutinefunction(pages.__call__)  # as servers look for
    handed: Any = pages.serve({"type": "http", "path": "/x"}, _nobody, _nobody)
    assert handed.cr_code is app.__code__
    await handed


async def _nobody(*_: Any) -> Any:
    return {}
