"""When a silent peer is taken for dead, as options."""

from __future__ import annotations

import math

import pytest

from holdfast.domain.discovery.keepalive import Keepalive


def test_what_a_channel_is_told() -> None:
    assert dict(Keepalive().client_options()) == {
        "grpc.keepalive_time_ms": 5000,
        "grpc.keepalive_timeout_ms": 3000,
        "grpc.http2.ping_timeout_ms": 3000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
    }
    quiet = dict(Keepalive(10.0, 0.0015, without_calls=False).client_options())
    assert quiet["grpc.keepalive_permit_without_calls"] == 0
    assert quiet["grpc.http2.ping_timeout_ms"] == 2
    assert Keepalive().bound == 8.0


def test_a_server_allows_what_its_clients_do() -> None:
    theirs = dict(Keepalive().server_options())
    assert dict(Keepalive().client_options()).items() <= theirs.items()
    assert theirs["grpc.http2.min_ping_interval_without_data_ms"] == 2500


@pytest.mark.parametrize(
    ("time", "timeout"),
    [(0.5, 3.0), (math.inf, 3.0), (math.nan, 3.0), (5.0, 0.0), (5.0, math.nan), (5.0, math.inf)],
)
def test_out_of_bounds(time: float, timeout: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Keepalive(time, timeout)
