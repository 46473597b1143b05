"""The smallest carrier, a dict over a queue, and what it looks like when it breaks a law."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import holdfast
from holdfast.domain.cause import CauseKind
from holdfast.domain.context import Carried, Identity
from holdfast.runtime.ambient import use
from holdfast.testing.laws import Call, Handler

LEAST = 0.01


class QueueCarrier:
    """inject() and extract() are the carrier; the rest is a server and a client."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.working: dict[int, holdfast.Scope] = {}
        self.numbers = count()

    # -- the carrier -----------------------------------------------------------------------------

    def inject(self) -> dict[str, Any]:
        here = holdfast.current()
        who = here.identity
        return {
            "left": holdfast.remaining(),
            "trace": (who.trace_id, who.span_id, who.sampled, who.given_id),
            "stage": here.stage,
        }

    def extract(self, headers: dict[str, Any]) -> tuple[float, Carried]:
        trace, span, sampled, given = headers["trace"]
        identity = Identity(trace, span, sampled=sampled, given_id=given)
        return headers["left"], Carried(identity, headers["stage"])

    # -- both sides ------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        async with holdfast.tasks("server") as server:
            receiving = server.start(self.receive(server, handler))
            yield self.call
            receiving.cancel()

    async def receive(self, server: holdfast.TaskGroup, handler: Handler) -> None:
        while True:
            message = await self.inbox.get()
            if message.get("gone"):
                scope = self.working.get(message["number"])
                if scope is not None:
                    scope.cancel("the caller has gone", kind=CauseKind.DISCONNECT)
            else:
                server.start(self.serve(message, handler))

    async def serve(self, message: dict[str, Any], handler: Handler) -> None:
        left, carried = self.extract(message)
        reply, number = message["reply"], message["number"]
        try:
            async with holdfast.timeout(left, name="served") as scope, use(carried):
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
        holdfast.refuse_below(LEAST)
        async with holdfast.scope(f"call {key}"):
            reply = asyncio.get_running_loop().create_future()
            return await self.send(self.inject(), key, takes, reply)

    async def send(
        self, headers: dict[str, Any], key: str, takes: float, reply: asyncio.Future[str]
    ) -> str:
        number = next(self.numbers)
        message = {**headers, "number": number, "key": key, "takes": takes, "reply": reply}
        self.inbox.put_nowait(message)
        try:
            return await reply
        finally:
            if reply.cancelled() or not reply.done():
                self.inbox.put_nowait({"gone": True, "number": number})


class Extending(QueueCarrier):
    def inject(self) -> dict[str, Any]:
        headers = super().inject()
        return {**headers, "left": headers["left"] + 0.001}


class RoundingUp(QueueCarrier):
    def inject(self) -> dict[str, Any]:
        headers = super().inject()
        left = headers["left"]
        return {**headers, "left": left if left == float("inf") else int(left * 1000 + 1) / 1000}


class Forgetful(QueueCarrier):
    def inject(self) -> dict[str, Any]:
        return {**super().inject(), "left": float("inf")}


class ZeroForNone(QueueCarrier):
    def inject(self) -> dict[str, Any]:
        headers = super().inject()
        return {**headers, "left": 0.5 if headers["left"] == float("inf") else headers["left"]}


class Reckless(QueueCarrier):
    """Crosses first and looks at the budget afterwards."""

    async def call(self, key: str, takes: float) -> str:
        reply = asyncio.get_running_loop().create_future()
        left = max(holdfast.remaining(), 1.0)
        return await self.send({**self.inject(), "left": left}, key, takes, reply)


class Optimistic(QueueCarrier):
    """Crosses although what is left cannot suffice."""

    async def call(self, key: str, takes: float) -> str:
        async with holdfast.scope(f"call {key}"):
            reply = asyncio.get_running_loop().create_future()
            return await self.send(self.inject(), key, takes, reply)


class Deaf(QueueCarrier):
    """Never tells the far side that the caller has gone."""

    async def receive(self, server: holdfast.TaskGroup, handler: Handler) -> None:
        while True:
            message = await self.inbox.get()
            if not message.get("gone"):
                server.start(self.serve(message, handler))


class Anonymous(QueueCarrier):
    def extract(self, headers: dict[str, Any]) -> tuple[float, Carried]:
        left, carried = super().extract(headers)
        return left, Carried(Identity("9" * 32, "8" * 16), carried.stage)


class Stageless(QueueCarrier):
    def extract(self, headers: dict[str, Any]) -> tuple[float, Carried]:
        left, carried = super().extract(headers)
        return left, Carried(carried.identity)


class Mixing(QueueCarrier):
    """Keeps what belongs to one call where all calls find it."""

    last: dict[str, Any]

    async def send(self, headers: Any, *args: Any) -> str:
        self.last = headers
        await asyncio.sleep(0)
        return await super().send(self.last, *args)


class Twice(QueueCarrier):
    """Sends again what may have arrived."""

    async def send(self, headers: Any, key: str, takes: float, reply: Any) -> str:
        number = next(self.numbers)
        self.inbox.put_nowait(
            {**headers, "number": number, "key": key, "takes": takes, "reply": reply}
        )
        return await super().send(headers, key, takes, reply)


class Lingering(QueueCarrier):
    """The far side works in the background, where no cancellation finds it."""

    async def serve(self, message: dict[str, Any], handler: Handler) -> None:
        await asyncio.wait([holdfast.detach(self.work(message, handler))])

    async def work(self, message: dict[str, Any], handler: Handler) -> None:
        _, carried = self.extract(message)
        async with use(carried):
            answer = await handler(message["key"], message["takes"])
        if not message["reply"].done():
            message["reply"].set_result(answer)


class WearingOut(QueueCarrier):
    """Loses a slot with every cancelled call."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = asyncio.Semaphore(20)

    async def call(self, key: str, takes: float) -> str:
        await self.slots.acquire()
        answer = await super().call(key, takes)
        self.slots.release()
        return answer


class Swallowing(QueueCarrier):
    """Turns a cancellation into an answer."""

    async def call(self, key: str, takes: float) -> str:
        try:
            return await super().call(key, takes)
        except asyncio.CancelledError:
            return key
