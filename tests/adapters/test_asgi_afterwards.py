"""What a request began and did not wait for, once its response is complete."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import holdfast
from holdfast.adapters.asgi import HoldfastMiddleware
from holdfast.domain.policy import Limits, Policy
from holdfast.runtime.driver import driver_of

LIMIT = 0.5


def now() -> float:
    return driver_of(asyncio.get_running_loop()).now()


async def serve(app: Any) -> list[dict[str, Any]]:
    """One request through the middleware, as a server would make it; what was sent."""
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return await asyncio.get_running_loop().create_future()  # the client waits and stays

    async def send(message: Any) -> None:
        sent.append(message)

    asgi = {
        "type": "http",
        "path": "/",
        "method": "GET",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    policy = Policy(defaults=Limits(request=LIMIT, header=LIMIT))
    await HoldfastMiddleware(app, policy)(asgi, receive, send)
    return sent


async def reply(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Audit:
    """Work of two seconds under a scope of its own, as an instrumented client opens it."""

    def __init__(self) -> None:
        self.took = 0.0
        self.left: list[float] = []
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        began = now()
        async with holdfast.scope("audit"):
            self.left.append(holdfast.remaining())
            await asyncio.sleep(0.2)
            self.left.append(holdfast.remaining())
            await asyncio.sleep(1.8)
        self.took = now() - began

    def begin(self) -> None:
        self.task = asyncio.create_task(self.run())


@pytest.mark.parametrize("pause", [0.0, 0.001, 0.1])
async def test_a_task_of_the_application_is_not_cut_when_the_response_is_complete(
    pause: float,
) -> None:
    audit = Audit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        audit.begin()
        await asyncio.sleep(pause)  # its scope is open, settled or not, or it has not begun
        await reply(send)

    sent = await serve(app)
    assert sent[0]["status"] == 200
    assert audit.task is not None
    await audit.task
    assert audit.took == pytest.approx(2)
    assert audit.left[-1] == float("inf")
    assert "cancelled.deadline" not in holdfast.tree().counts


async def test_nor_while_the_handler_goes_on_after_its_response() -> None:
    audit = Audit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        audit.begin()
        await asyncio.sleep(0.1)
        await reply(send)
        await asyncio.sleep(5)

    await serve(app)
    assert audit.took == pytest.approx(2)


async def test_a_limit_of_its_own_still_holds() -> None:
    ended: list[float] = []

    async def bounded() -> None:
        began = now()
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(1):
                await asyncio.sleep(10)
        ended.append(now() - began)

    tasks: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.create_task(bounded()))
        await asyncio.sleep(0.1)
        await reply(send)

    await serve(app)
    await asyncio.wait(tasks)
    assert [task.exception() for task in tasks] == [None]
    assert ended == [pytest.approx(1)]


async def test_before_the_response_is_complete_the_limit_holds_for_it_too() -> None:
    audit = Audit()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        audit.begin()
        await asyncio.sleep(10)

    sent = await serve(app)
    assert sent[0]["status"] == 504
    assert audit.task is not None
    with pytest.raises(holdfast.DeadlineExceeded):
        await audit.task
    assert audit.took == 0
