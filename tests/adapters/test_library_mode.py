"""Library mode in servers that are started by their own commands, none of them changed."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest

from tests.adapters.commands import serving
from tests.adapters.embedding import Load, exchange, request, run, sockets_closed_with

pytestmark = pytest.mark.system

WHOLE = ["pool up", "startup", "stop begun", "at exit", "shutdown", "pool down"]


@pytest.mark.parametrize("words", ["", "carried", "around"])
@pytest.mark.parametrize("kind", ["uvicorn", "uvicorn-h11", "gunicorn"])
def test_nothing_is_lost_on_connections_that_are_kept(
    kind: str, words: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(kind, tmp_path, words) as served:
            load = Load(served.port, "/late/0.05" if words else "/")
            await load.warm()
            served.signal()
            await asyncio.sleep(0.2)
            status, head, body = await served.ask("/readyz")
            assert (status, json.loads(body)["status"]) == (503, "unready")
            assert "connection: close" in head
            assert (await served.ask("/healthz"))[0] == 200
            code = await served.ended()
            await load.ended()
            assert load.lost == 0
            assert load.announced >= 20
            assert code in (0, -signal.SIGTERM)
            assert served.notes() == WHOLE
            phases = [r["subject"] for r in served.records() if r["kind"] == "phase.entered"]
            assert phases == ["initializing", "running", "terminating", "draining", "stopped"]
            heard = [r for r in served.records() if r["kind"] == "signal.received"]
            assert [r["subject"] for r in heard] == ["SIGTERM"]

    run(None, main())


@pytest.mark.parametrize("kind", ["uvicorn", "uvicorn-off"])
def test_an_application_without_a_lifespan_is_served_all_the_same(
    kind: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(kind, tmp_path, "bare") as served:
            assert (await served.ask("/host"))[0] == 200
            status, _, body = await served.ask("/readyz")
            assert status == 200
            assert json.loads(body)["checks"]["database"]["status"] == "up"
            load = Load(served.port)
            await load.warm()
            served.signal()
            await served.ended()
            await load.ended()
            assert load.lost == 0
            assert served.notes() == ["pool up", "stop begun", "at exit", "pool down"]

    run(None, main())


def test_hooks_of_requests_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("uvicorn", tmp_path, "carried") as served:
            assert (await served.ask("/hooked"))[0] == 200
            served.signal()
            await served.ended()
            assert served.notes().count("at end done") == 1

    run(None, main())


def test_websockets_get_1012_and_a_request_that_never_ends_is_cut(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("uvicorn", tmp_path, "carried") as served:
            _opened, codes = await sockets_closed_with(served.port, 20)
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.2)
            served.signal()
            assert await asyncio.gather(*codes) == [1012] * 20
            status, head, _ = await exchange(reader)
            assert status == 503
            assert "retry-after" in head
            await served.ended()
            notes = served.notes()
            assert notes.count("disconnect 1012") == 20
            assert [n for n in notes if n != "disconnect 1012"] == [
                "pool up", "startup", "stop begun", "cancelled", "at exit", "shutdown", "pool down",
            ]  # fmt: skip
            writer.close()

    run(None, main())


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)],
)
def test_the_second_signal_goes_straight_through(
    first: signal.Signals, second: signal.Signals, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving("uvicorn", tmp_path) as served:
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            served.signal(first)
            await asyncio.sleep(0.2)
            served.signal(second)
            await served.ended()
            # Neither the lame duck nor the deadline was waited for.
            assert time.monotonic() - began < 4
            assert "cancelled" in served.notes()
            assert any(r["data"].get("again") for r in served.records())
            writer.close()

    run(None, main())


def test_a_start_that_fails_is_told_to_the_server(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("uvicorn", tmp_path, "failing", up=False) as served:
            assert await served.ended() == 3
            assert served.notes() == ["pool up", "startup", "pool down"]
            assert "no database" in served.log()

    run(None, main())


@pytest.mark.parametrize("kind", ["hypercorn", "hypercorn-one"])
def test_where_the_signals_cannot_be_taken_that_is_said_and_the_rest_holds(
    kind: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(kind, tmp_path) as served:
            assert "cannot be taken" in served.log()
            served.signal()
            await served.ended()
            assert served.notes() == WHOLE

    run(None, main())


def test_each_worker_of_uvicorn_has_a_life_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("uvicorn-2", tmp_path) as served:
            load = Load(served.port)
            await load.warm()
            served.signal()
            await served.ended()
            await load.ended()
            assert load.lost == 0
            assert sorted(served.notes()) == sorted(WHOLE * 2)

    run(None, main())
