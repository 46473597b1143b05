"""The ASGI carrier at a stop: who is turned away, and who is told that it was the server."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.domain.cause import Cause, CauseKind
from holdfast.runtime.driver import driver_of
from tests.adapters.test_asgi import CONNECT, Call, Sleeper, echo, now, within


@pytest.mark.parametrize(
    ("code", "bounded", "kind"),
    [
        (1012, False, CauseKind.SHUTDOWN),  # no client sends it
        (1001, True, CauseKind.SHUTDOWN),
        (1001, False, CauseKind.DISCONNECT),  # a browser that goes to another page
        (1006, True, CauseKind.DISCONNECT),
        (1000, True, CauseKind.DISCONNECT),
    ],
)
async def test_a_websocket_that_the_server_ends(code: int, bounded: bool, kind: CauseKind) -> None:
    seen: list[object] = []

    async def handler(scope: object, receive: object, send: object) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError as error:
            seen.append(error.args[0].kind)
            raise

    app = HoldfastMiddleware(handler, within(2))
    call = Call(app, kind="websocket", body=(CONNECT,))
    task = call.start()
    await asyncio.sleep(1)
    if bounded:
        driver_of(asyncio.get_running_loop()).bound_root(now() + 100, 5)
    call.incoming.put_nowait({"type": "websocket.disconnect", "code": code})
    await task
    assert seen == [kind]
    assert app.counts["disconnected"] == (kind is CauseKind.DISCONNECT)
    assert app.counts[f"ended.{kind}"] == 1
    assert call.sent == []  # it is closed already


async def test_a_websocket_handler_that_reads_the_end_goes_on_as_it_likes() -> None:
    app = HoldfastMiddleware(echo, within(2))
    call = Call(app, kind="websocket", body=(CONNECT,))
    task = call.start()
    await asyncio.sleep(1)
    call.incoming.put_nowait({"type": "websocket.disconnect", "code": 1012})
    await task
    assert app.counts["disconnected"] == app.counts["ended.shutdown"] == 0


@pytest.mark.parametrize(("seconds", "value"), [(0.0, "1"), (0.2, "1"), (2.0, "2"), (2.5, "3")])
async def test_who_is_turned_away_is_told_when_to_come_back(seconds: float, value: str) -> None:
    app = HoldfastMiddleware(Sleeper(), within(50), retry_after=seconds)
    call = Call(app)
    task = call.start()
    await asyncio.sleep(1)
    driver = driver_of(asyncio.get_running_loop())
    driver.cancel_root(Cause(CauseKind.SHUTDOWN, "process", "shop", now(), 1.0, 1.0))
    await task
    assert call.status == 503
    assert call.headers["retry-after"] == value
    assert app.counts["turned_away"] == 1


async def test_a_new_time_to_come_back_holds_with_the_next_policy() -> None:
    app = HoldfastMiddleware(Sleeper(), within(50))
    app.retry_after = 7.0
    app.policy = within(60)
    call = Call(app)
    task = call.start()
    await asyncio.sleep(1)
    driver = driver_of(asyncio.get_running_loop())
    driver.cancel_root(Cause(CauseKind.SHUTDOWN, "process", "shop", now(), 1.0, 1.0))
    await task
    assert call.headers["retry-after"] == "7"
