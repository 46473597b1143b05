"""An asyncio.Queue, and whatever else takes a dict, under the carrier laws."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import holdfast
from holdfast import carry
from holdfast.domain.cause import CauseKind
from holdfast.testing.laws import Call, CarrierLaws, Handler

LEAST = 0.01


class QueueCarrier:
    """The headers are the carrier; the rest is a worker, and the way in which callers say that they
    have gone, which is up to whoever builds on a queue."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.working: dict[int, holdfast.Scope] = {}
        self.numbers = count()

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        async with holdfast.tasks("worker") as worker:
            receiving = worker.start(self.receive(worker, handler))
            yield self.call
            receiving.cancel()

    async def receive(self, worker: holdfast.TaskGroup, handler: Handler) -> None:
        while True:
            message = await self.inbox.get()
            if "gone" in message:
                if scope := self.working.get(message["gone"]):
                    scope.cancel("the caller has gone", kind=CauseKind.DISCONNECT)
            else:
                worker.start(self.serve(message, handler))

    async def serve(self, message: dict[str, Any], handler: Handler) -> None:
        reply, number = message["reply"], message["number"]
        headers = json.loads(message["headers"])
        try:
            async with carry.extract(headers, name="served", trust_stage=True) as scope:
                self.working[number] = scope
                answer = await handler(message["key"], message["takes"])
        except holdfast.ScopeEnded as exc:
            if not reply.done():
                reply.set_exception(exc)
                reply.exception()  # the caller may have gone
        else:
            if not reply.done():
                reply.set_result(answer)
        finally:
            self.working.pop(number, None)

    async def call(self, key: str, takes: float) -> str:
        reply = asyncio.get_running_loop().create_future()
        number = next(self.numbers)
        headers = json.dumps(carry.inject(refuse_below=LEAST))
        await self.inbox.put(
            {"headers": headers, "number": number, "key": key, "takes": takes, "reply": reply}
        )
        try:
            return await reply
        finally:
            if reply.cancelled() or not reply.done():
                self.inbox.put_nowait({"gone": number})


class TestQueue(CarrierLaws):
    carrier = QueueCarrier
    least = LEAST
