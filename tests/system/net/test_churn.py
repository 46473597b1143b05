"""Connections that are cancelled at random points leave nothing, here and at the peer."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from bench.net.churn import CLIENTS, churned

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CALLS = 300


@pytest.mark.parametrize("client", list(CLIENTS))
def test_nothing_is_left(client: str) -> None:
    if find_spec(CLIENTS[client]) is None:
        pytest.skip(f"{CLIENTS[client]} is not installed")
    found = churned(client, CALLS, lambda done, what: None)
    assert found["other"] == {}  # each was answered or ended by its cancellation, nothing else
    assert found["answered"] + found["cancelled"] == CALLS
    assert min(found["answered"], found["cancelled"]) > 0, "the points were not random"
    assert found["tcp left"] == found["threads left"] == found["open at the peer"] == 0, found
