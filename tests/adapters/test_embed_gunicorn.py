"""gunicorn with our worker, beside the one that it differs from."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from tests.adapters.commands import Running, serving
from tests.adapters.embedding import Load, exchange, request, run, sockets_closed_with

pytestmark = pytest.mark.system


async def _workers_gone(served: Running) -> None:
    assert await served.ended() == 0


@pytest.mark.parametrize("path", ["/", "/late/0.1"])
def test_nothing_is_lost_on_connections_that_are_kept(path: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("gunicorn-own", tmp_path) as served:
            load = Load(served.port, path)
            await load.warm()
            served.signal()
            await _workers_gone(served)
            await load.ended()
            assert load.lost == 0
            assert load.announced >= 20
            assert "shutdown" in served.notes()
            assert "was sent SIG" not in served.log()  # each worker ended by itself

    run(None, main())


def test_what_is_served_is_cut_before_gunicorn_kills(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("gunicorn-own", tmp_path) as served:
            _opened, codes = await sockets_closed_with(served.port, 20)
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.2)
            served.signal()
            assert await asyncio.gather(*codes) == [1012] * 20
            status, _, _ = await exchange(reader)
            assert status == 500
            await _workers_gone(served)
            assert "cancelled" in served.notes()
            assert "shutdown" in served.notes()
            writer.close()

    run(None, main())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_stop_the_worker(number: signal.Signals, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("gunicorn-own", tmp_path) as served:
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            served.signal(number)
            await _workers_gone(served)
            assert time.monotonic() - began < 5  # of a graceful time-out of 6
            assert "shutdown" in served.notes()
            writer.close()

    run(None, main())


def test_a_second_signal_cuts(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("gunicorn-own", tmp_path) as served:
            _, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            worker = served.children()[0]
            served.signal_to(worker)
            await asyncio.sleep(0.3)
            served.signal_to(worker)
            while "shutdown" not in served.notes():
                assert time.monotonic() - began < 5
                await asyncio.sleep(0.05)
            assert "cancelled" in served.notes()
            writer.close()

    run(None, main())


def test_a_middleware_that_holds_the_signal_back_is_let_do_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving("gunicorn-both", tmp_path) as served:
            load = Load(served.port)
            await load.warm()
            began = time.monotonic()
            served.signal()
            await _workers_gone(served)
            assert time.monotonic() - began < 5
            await load.ended()
            assert load.lost == 0
            whole = ["pool up", "startup", "stop begun", "at exit", "shutdown", "pool down"]
            assert served.notes() == whole

    run(None, main())
