"""The harness that counts what a stop loses sees a loss, and sees none where there is none."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from bench.stop.cells import FIVE, Situation, stop_once
from bench.stop.servers import SERVERS, Ask, Server
from bench.stop.tally import Call, tally

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CLIENTS = 20
AWAY = 0.3
EAGER = Situation("/wait/50", 0.05, eager=True)


def plain(how: str) -> Server:
    def command(ask: Ask) -> list[str]:
        return [sys.executable, "-m", "bench.stop.peers.plain", str(ask.port), how]

    return Server(how, command, ())


def stop(server: Server, cell: str | Situation, seed: int = 1) -> dict[str, Any]:
    found = stop_once(server, cell, count=CLIENTS, seed=seed, away=AWAY)
    assert found["warm"]
    assert found["calls"] > 2 * CLIENTS
    assert found["orphans"] == 0
    return found


def test_a_server_that_closes_kept_alive_connections_shows_losses() -> None:
    found = stop(plain("careless"), EAGER)
    assert found["rc"] == 0
    # Each client sends one more request on a connection that nobody told it was the last.
    assert found["lost_kept"] == CLIENTS
    assert found["announced"] == 0


def test_a_server_that_says_so_and_waits_shows_none() -> None:
    found = stop(plain("careful"), EAGER)
    assert found["rc"] == 0
    assert found["lost"] == 0
    assert found["announced"] >= CLIENTS


def call(sent: float, ended: float, how: str = "ok", nth: int = 1) -> Call:
    return Call(0.0, nth, sent, ended, how, 200 if how == "ok" else 0, False)


def test_losses_are_told_apart() -> None:
    calls = [
        call(0.0, 1.0),
        call(1.0, 3.0, "part"),
        call(1.5, 2.5),
        call(2.1, 2.2, "eof"),
        call(2.1, 2.6, "reset", nth=0),
        call(2.2, 2.9),
    ]
    found = tally(calls, [2.0], [2.3])
    assert found["lost"] == 3
    assert found["lost_how"] == {"part": 1, "eof": 1, "reset": 1}
    assert (found["lost_kept"], found["lost_new"], found["lost_in_flight"]) == (2, 1, 1)
    assert (found["late_kept"], found["refused"]) == (1, 1)
    assert (found["last_in_flight"], found["last_answer"]) == (2.5, 2.9)


@pytest.mark.parametrize("cell", FIVE)
def test_serve_loses_nothing(cell: str) -> None:
    for seed in (1, 2):
        found = stop(SERVERS["holdfast"], cell, seed)
        assert found["lost"] == 0, found
        assert found["rc"] == 0, found
        assert found["hook"] == 1, found
