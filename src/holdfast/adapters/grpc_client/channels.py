"""A channel of grpc.aio, around one of grpc, whose calls are bound.

Not an interceptor, which would do as well: for those grpc makes a task for each call.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

from holdfast.adapters.grpc_client.answers import Chat, Messages, OneAnswer, OneAnswerToMany
from holdfast.adapters.grpc_client.outward import Line
from holdfast.adapters.grpc_client.rpc import Requests, Rpc
from holdfast.domain.instant import Duration
from holdfast.runtime.outbound import Outbound

__all__ = ["BoundChannel", "host_of"]

A = TypeVar("A")


def host_of(target: str) -> str:
    """What a target leads to, without its scheme."""
    return target.rpartition("/")[2] if "://" in target else target


class BoundChannel(grpc.aio.Channel):
    """See the module.

    Args:
        inner: the channel of grpc.
        outbound: options.
        host: what it leads to.
    """

    def __init__(self, inner: grpc.aio.Channel, outbound: Outbound, host: str) -> None:
        self._inner = inner
        self._outbound = outbound
        self._host = host

    async def __aenter__(self) -> BoundChannel:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(exc_type, exc_val, exc_tb)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *others: Any, **named: Any) -> Any:
        return _OneToOne(self, method, self._inner.unary_unary(method, *others, **named))

    def unary_stream(self, method: str, *others: Any, **named: Any) -> Any:
        return _OneToMany(self, method, self._inner.unary_stream(method, *others, **named))

    def stream_unary(self, method: str, *others: Any, **named: Any) -> Any:
        return _ManyToOne(self, method, self._inner.stream_unary(method, *others, **named))

    def stream_stream(self, method: str, *others: Any, **named: Any) -> Any:
        return _ManyToMany(self, method, self._inner.stream_stream(method, *others, **named))

    def line(self, method: str) -> Line:
        """What its calls of a method have in common."""
        return Line(self._outbound, self._host, method)

    @property
    def inner(self) -> grpc.aio.Channel:
        """The channel of grpc."""
        return self._inner


class _Method:
    def __init__(self, channel: BoundChannel, method: str, start: Any) -> None:
        self._channel = channel.inner
        self._line = channel.line(method)
        self._start = start

    def _begun(
        self,
        request: Any,
        timeout: Duration | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> tuple[Rpc, Any]:
        rpc = Rpc(self._line, self._channel, timeout, wait_for_ready)
        return rpc, rpc.begin(self._start, request, metadata, credentials, compression)


class _OneToOne(_Method, grpc.aio.UnaryUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> OneAnswer:
        return OneAnswer(
            *self._begun(request, timeout, metadata, credentials, wait_for_ready, compression)
        )


class _OneToMany(_Method, grpc.aio.UnaryStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Messages:
        return Messages(
            *self._begun(request, timeout, metadata, credentials, wait_for_ready, compression)
        )


class _ManyToOne(_Method, grpc.aio.StreamUnaryMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> OneAnswerToMany:
        requests = None if request_iterator is None else Requests(request_iterator)
        return OneAnswerToMany(
            *self._begun(requests, timeout, metadata, credentials, wait_for_ready, compression)
        )


class _ManyToMany(_Method, grpc.aio.StreamStreamMultiCallable[Any, Any]):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Chat:
        requests = None if request_iterator is None else Requests(request_iterator)
        return Chat(
            *self._begun(requests, timeout, metadata, credentials, wait_for_ready, compression)
        )
