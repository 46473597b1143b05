"""A channel of grpc without asyncio, around one of grpc, whose calls are bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Any, Final

import grpc

from holdfast.adapters.grpc_client.blocking import (
    BlockingRpc,
    FutureAnswer,
    State,
    StreamedAnswers,
)
from holdfast.adapters.grpc_client.outward import Line
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.instant import Duration
from holdfast.runtime.outbound import Outbound

__all__ = ["BoundSyncChannel"]

_STATES: Final = {state.value[0]: state for state in grpc.ChannelConnectivity}


class BoundSyncChannel(grpc.Channel):
    """See the module.

    Args:
        inner: the channel of grpc.
        interceptors: of the user.
        outbound: options.
        host: what it leads to.
    """

    def __init__(
        self,
        inner: grpc.Channel,
        interceptors: Sequence[Any],
        outbound: Outbound,
        host: str,
    ) -> None:
        self._inner = grpc.intercept_channel(inner, *interceptors) if interceptors else inner
        self._state = _state_of(inner)
        self._outbound = outbound
        self._host = host

    def __enter__(self) -> BoundSyncChannel:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._inner.close()

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        self._inner.subscribe(callback, try_to_connect=bool(try_to_connect))

    def unsubscribe(self, callback: Any) -> None:
        self._inner.unsubscribe(callback)

    def unary_unary(self, method: str, *others: Any, **named: Any) -> Any:
        return _OneToOne(
            self._line(method), self._state, self._inner.unary_unary(method, *others, **named)
        )

    def unary_stream(self, method: str, *others: Any, **named: Any) -> Any:
        return _OneToMany(
            self._line(method), self._state, self._inner.unary_stream(method, *others, **named)
        )

    def stream_unary(self, method: str, *others: Any, **named: Any) -> Any:
        return _ManyToOne(
            self._line(method), self._state, self._inner.stream_unary(method, *others, **named)
        )

    def stream_stream(self, method: str, *others: Any, **named: Any) -> Any:
        return _ManyToMany(
            self._line(method), self._state, self._inner.stream_stream(method, *others, **named)
        )

    def _line(self, method: str) -> Line:
        return Line(self._outbound, self._host, method)


def _state_of(channel: Any) -> State:
    """How to ask for the state of a channel. grpc has a public way, with a thread that polls."""
    inner: Any = getattr(channel, "_channel", None)
    check: Callable[[bool], Any] | None = getattr(inner, "check_connectivity_state", None)
    if check is None:
        return lambda: None
    ask = check

    def state() -> grpc.ChannelConnectivity | None:
        try:
            return _STATES.get(ask(False))
        except ValueError:  # it is closed: grpc says so itself, where the call is made
            return None

    return state


class _Method:
    def __init__(self, line: Line, state: State, start: Any) -> None:
        self._line = line
        self._state = state
        self._start = start

    def _begun(
        self,
        timeout: Duration | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> tuple[BlockingRpc, dict[str, Any]]:
        rpc = BlockingRpc(self._line, self._state, timeout, wait_for_ready)
        told = rpc.begin(metadata)
        told["credentials"] = credentials
        told["compression"] = compression
        return rpc, told


class _ForOne(_Method):
    """Methods with one answer."""

    streams = False
    """Whether the requests are a stream."""

    def _with_call(
        self,
        request: Any,
        timeout: Duration | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> tuple[Any, Any]:
        rpc, told = self._begun(timeout, metadata, credentials, wait_for_ready, compression)
        try:
            if rpc.ready and not self.streams:
                answer, call = self._start.with_call(request, **told)
            else:
                answer, call = self._waited(rpc, request, told)
        except PhaseTimeout:
            raise
        except grpc.RpcError as exc:
            error = rpc.explained(exc)
            if error is exc:
                raise
            raise error from exc
        except BaseException as exc:
            rpc.cut(exc)
            raise
        rpc.well(call)
        return answer, call

    def _waited(self, rpc: BlockingRpc, request: Any, told: dict[str, Any]) -> tuple[Any, Any]:
        """By a future of grpc: it can be cancelled when the dial takes too long, and looked at."""
        inner = self._start.future(_InContext(request) if self.streams else request, **told)
        try:
            rpc.dial(inner)
            if self.streams:
                rpc.head(inner)
            return inner.result(), inner
        finally:
            inner.cancel()  # where we are interrupted; it is over otherwise

    def _future(self, request: Any, *others: Any) -> FutureAnswer:
        rpc, told = self._begun(*others)
        given = _InContext(request) if self.streams else request
        return FutureAnswer(rpc, _started(rpc, self._start.future, given, told))


class _ForMany(_Method):
    """Methods with a stream of answers."""

    streams = False

    def _answers(self, request: Any, *others: Any) -> StreamedAnswers:
        rpc, told = self._begun(*others)
        given = _InContext(request) if self.streams else request
        return StreamedAnswers(rpc, _started(rpc, self._start, given, told))


def _started(rpc: BlockingRpc, start: Callable[..., Any], request: Any, told: Any) -> Any:
    try:
        return start(request, **told)
    except Exception as exc:
        rpc.cut(exc)
        raise


class _OneToOne(_ForOne, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._with_call(
            request, timeout, metadata, credentials, wait_for_ready, compression
        )[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, Any]:
        return self._with_call(request, timeout, metadata, credentials, wait_for_ready, compression)

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._future(request, timeout, metadata, credentials, wait_for_ready, compression)


class _OneToMany(_ForMany, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._answers(request, timeout, metadata, credentials, wait_for_ready, compression)


class _ManyToOne(_ForOne, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    streams = True

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._with_call(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )[0]

    def with_call(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, Any]:
        return self._with_call(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )

    def future(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._future(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )


class _ManyToMany(_ForMany, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    streams = True

    def __call__(
        self,
        request_iterator: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._answers(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        )


class _InContext:
    """The requests of a stream, which grpc takes in a thread of its own, in the caller's context.

    So what they are made from, other calls for example, is bound by the same deadline.
    """

    def __init__(self, source: Any) -> None:
        self._source = iter(source)
        self._context = copy_context()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._context.run(next, self._source)
