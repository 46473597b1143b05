"""What a caller of grpc.aio gets: one answer, or a stream; its errors say where the time went."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from types import TracebackType
from typing import Any

import grpc
import grpc.aio
from grpc.aio import AioRpcError

from holdfast.adapters.grpc_client.ends import came
from holdfast.adapters.grpc_client.rpc import Rpc

__all__ = ["Chat", "Messages", "OneAnswer", "OneAnswerToMany"]


class _Answer:
    """A call. Everything but the waiting is the call of grpc itself."""

    def __init__(self, rpc: Rpc, inner: Any) -> None:
        self._rpc = rpc
        self._inner = inner

    def cancel(self) -> bool:
        self._rpc.asked = True
        return bool(self._inner.cancel())

    def cancelled(self) -> bool:
        return bool(self._inner.cancelled())

    def done(self) -> bool:
        return bool(self._inner.done())

    def time_remaining(self) -> float | None:
        left: float | None = self._inner.time_remaining()
        return left

    def add_done_callback(self, callback: Any) -> None:
        def done(_: Any) -> None:
            callback(self)

        self._inner.add_done_callback(done)

    async def initial_metadata(self) -> Any:
        return await self._inner.initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await self._inner.trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self._inner.code()
        return code

    async def details(self) -> str:
        return str(await self._inner.details())

    async def wait_for_connection(self) -> None:
        await self._inner.wait_for_connection()

    def __getattr__(self, name: str) -> Any:
        # grpc asks its calls for more than it promises.
        return getattr(self._inner, name)


class OneAnswer(_Answer, grpc.aio.UnaryUnaryCall[Any, Any]):
    """To one request."""

    def __await__(self) -> Generator[Any, None, Any]:
        rpc = self._rpc
        if rpc.dial is not None:
            return self._wait().__await__()
        return self._quick(rpc)

    def _quick(self, rpc: Rpc) -> Generator[Any, None, Any]:
        # The channel is ready, as nearly always: the same as `_wait`, unrolled.
        rpc.waiters += 1
        try:
            try:
                waiting: Generator[Any, None, Any] = self._inner.__await__()
                # Its initial metadata comes with the answer, as one piece.
                answer = yield from waiting
            except AioRpcError as exc:
                error = yield from rpc.explained(exc).__await__()
                if error is exc:
                    raise
                raise error from exc
        except asyncio.CancelledError as exc:
            rpc.cut(exc)
            raise
        finally:
            rpc.waiters -= 1
        if rpc.ledger is None:
            rpc.done()
        else:
            yield from rpc.told().__await__()
        return answer

    async def _wait(self) -> Any:
        rpc = self._rpc
        with _Told(rpc) as told:
            try:
                answer = await self._inner
            except AioRpcError as exc:
                await told.explain(exc)
                raise
        await rpc.told()
        return answer


class _Writes(_Answer):
    async def write(self, request: Any) -> None:
        await self._told(self._inner.write(request))

    async def done_writing(self) -> None:
        await self._told(self._inner.done_writing())

    async def _told(self, writing: Awaitable[None]) -> None:
        with _Told(self._rpc) as told:
            try:
                await writing
            except AioRpcError as exc:
                await told.explain(exc)
                raise


class OneAnswerToMany(_Writes, grpc.aio.StreamUnaryCall[Any, Any]):
    """To a stream of requests."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        rpc, inner = self._rpc, self._inner
        with _Told(rpc) as told:
            try:
                await rpc.head()
                answer = await inner
            except AioRpcError as exc:
                await told.explain(exc)
                raise
        await rpc.told()
        return answer


class Messages(_Answer, grpc.aio.UnaryStreamCall[Any, Any]):
    """The answers of a stream, to one request."""

    def __init__(self, rpc: Rpc, inner: Any) -> None:
        super().__init__(rpc, inner)
        self._begun = False
        self._count = 0

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Any:
        return await self._next(iterated=True)

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        return await self._next(iterated=False)

    async def _next(self, *, iterated: bool) -> Any:
        rpc, inner = self._rpc, self._inner
        with _Told(rpc, self._count) as told:
            try:
                if not self._begun:
                    await rpc.head()
                    self._begun = True
                message = await (inner.__aiter__().__anext__() if iterated else inner.read())
            except StopAsyncIteration:
                await rpc.told()
                raise
            except AioRpcError as exc:
                await told.explain(exc)
                raise
        if message is grpc.aio.EOF:
            await rpc.told()
        else:
            self._count += 1
        return message


class Chat(_Writes, Messages, grpc.aio.StreamStreamCall[Any, Any]):
    """The answers of a stream, to a stream of requests."""


class _Told:
    """What the caller is told when it waits in vain: around each wait for the server.

    Args:
        rpc: the call.
        count: messages that came.
    """

    __slots__ = ("_cancels", "_count", "_rpc", "_task")

    def __init__(self, rpc: Rpc, count: int = 0) -> None:
        self._rpc = rpc
        self._count = count

    @property
    def _detail(self) -> str:
        return came(self._count)

    async def explain(self, exc: AioRpcError) -> None:
        """Raise what an error of grpc is made into, if it is another one."""
        error = await self._rpc.explained(exc, self._detail)
        if error is not exc:
            raise error from exc

    def __enter__(self) -> _Told:
        self._task = task = asyncio.current_task()
        self._cancels = 0 if task is None else task.cancelling()
        self._rpc.waiters += 1
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._rpc.waiters -= 1
        if not isinstance(exc, asyncio.CancelledError):
            return
        task = self._task
        ours = task is None or task.cancelling() <= self._cancels
        late = self._rpc.undialled() if ours else None
        if late is not None:
            raise late from None
        self._rpc.cut(exc, self._detail)
