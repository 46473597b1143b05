"""Handlers that are plain functions: in a server of threads, and in a thread of grpc.aio.

A thread cannot be cancelled. What can be done for it: a call that expired in the queue is not
begun; what the handler calls is bounded by what is left, and refused when nothing is; between two
messages of a stream it is ended; and when it ran over, the answer is `DEADLINE_EXCEEDED`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn

import grpc

from holdfast.adapters.grpc_server.answers import answer_to, code_of, timing_of
from holdfast.adapters.grpc_server.calls import behavior_of, remade
from holdfast.adapters.grpc_server.rpc import Rpc
from holdfast.adapters.grpc_server.terms import MethodTerms, Rules, Stop
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import Instant
from holdfast.domain.policy import Policy
from holdfast.domain.tree import Node
from holdfast.domain.wire.ending import ended_by
from holdfast.runtime.clock import monotonic

__all__ = ["GrpcThreadCarrier", "ThreadMethod"]

_MOST: Final = 4096


class _Over(Exception):
    """Nobody waits for the call any more."""


class ThreadMethod:
    """The handler of one method, which runs in a thread, with a scope around each of its calls.

    Args:
        rules: of the carrier.
        path: of the method.
        handler: as it was.
    """

    def __init__(self, rules: Rules, path: str, handler: Any) -> None:
        self._rules = rules
        self._handler = handler
        self._inner = behavior_of(handler)
        streams = bool(handler.request_streaming) or bool(handler.response_streaming)
        self._terms = terms = MethodTerms(rules, path, streams)
        self._says = rules.timings or terms.observing
        self._serve = self._many if handler.response_streaming else self._one

    def handler(self, arrival: Instant, metadata: Any) -> Any:
        """The handler of one call: a thread of a pool has no context of its own to find it in."""
        return remade(self._handler, partial(self._serve, arrival, metadata))

    def _one(self, arrival: Instant, metadata: Any, request: Any, context: Any) -> Any:
        try:
            rpc = self._opened(arrival, metadata, context)
            try:
                with rpc:
                    answer = self._inner(request, context)
                if self._says:
                    self._say(rpc, context)
                return answer
            except Exception as error:
                self._failed(rpc, error, context)
                raise
            finally:
                self._rules.thread_done(rpc)
        except _Over:
            return None

    def _many(
        self, arrival: Instant, metadata: Any, request: Any, context: Any
    ) -> Generator[Any, None, None]:
        with suppress(_Over):
            rpc = self._opened(arrival, metadata, context)
            try:
                with rpc:
                    yield from self._messages(rpc, self._inner(request, context))
                if self._says:
                    self._say(rpc, context)
            except Exception as error:
                self._failed(rpc, error, context)
                raise
            finally:
                self._rules.thread_done(rpc)

    @staticmethod
    def _messages(rpc: Rpc, messages: Iterator[Any]) -> Generator[Any, None, None]:
        try:
            for message in messages:
                if rpc.limit <= monotonic() or rpc.cause is not None:
                    return  # whoever has opened it says why
                yield message
        finally:
            close = getattr(messages, "close", None)
            if close is not None:
                close()

    def _opened(self, arrival: Instant, metadata: Any, context: Any) -> Rpc:
        """The scope, to be entered; raises what ends the call when it must not begin."""
        now = monotonic()
        rpc = Rpc(self._terms, arrival, metadata, context.time_remaining(), now)
        cause = rpc.turned_away() if self._rules.ending.closed else rpc.too_late(now)
        if cause is not None:
            self._end(rpc, cause, context)
        context.add_callback(partial(_gone, rpc))
        self._rules.threads.add(rpc)  # last, as from here on somebody must say that it is done
        return rpc

    def _failed(self, rpc: Rpc, error: Exception, context: Any) -> None:
        cause = ended_by(error)
        if cause is not None:
            self._end(rpc, cause, context)

    def _end(self, rpc: Rpc, cause: Cause, context: Any) -> NoReturn:
        """Answer for the handler; raises what tells grpc that this is done."""
        self._rules.note(rpc.name, rpc.echo_id, code_of(cause).name, cause)
        now = monotonic()
        if now >= rpc.end_of_grpc and not hasattr(context, "trailing_metadata"):
            raise _Over  # grpc.aio would only say that it cannot send
        answer = answer_to(cause, rpc, now, _theirs(context))
        context.set_trailing_metadata(answer.trailers)
        context.abort(answer.code, answer.message)
        raise _Over  # in older versions of grpc.aio that returns

    def _say(self, rpc: Rpc, context: Any) -> None:
        if self._rules.timings and rpc.named and hasattr(context, "trailing_metadata"):
            # In a thread of grpc.aio nobody can ask what the handler has set.
            ours = timing_of(rpc, monotonic())
            context.set_trailing_metadata((*_theirs(context), *ours))
        if rpc.terms.observing:
            rpc.compare(monotonic())


def _theirs(context: Any) -> tuple[Any, ...]:
    """What the handler has set, where that can be asked for."""
    ask = getattr(context, "trailing_metadata", None)
    return tuple((ask() if ask is not None else None) or ())


def _gone(rpc: Rpc) -> None:
    """grpc is done with a call; if its handler is not, its client has gone."""
    if rpc.outcome is None and rpc.opened_at:
        rpc.terms.counts["disconnected"] += 1
        # Not `rpc.cancel`, which is for the thread of a loop. Here it is only noted.
        Node.cancel(rpc, rpc.cause_of(CauseKind.DISCONNECT, monotonic()))


class GrpcThreadCarrier(Rules, grpc.ServerInterceptor):
    """Gives every call of a server of threads, `grpc.server`, a deadline and an identity.

        carrier = GrpcThreadCarrier()
        server = grpc.server(ThreadPoolExecutor(64), interceptors=[carrier])

    What a thread cannot: be cancelled. See the module for what is done instead. There are no idle
    limits of streams here, and a response stream is only ended between two messages.

    Args:
        policy: limits by route, which is the path of a method, `/shop.Orders/Get` or
            `/shop.Orders/*`; `holdfast.domain.policy.DEFAULT_POLICY` by default.
        service: name of this hop in causes and timings, over that of the policy.
        timings: whether a call that went well says in its trailing metadata what it spent
            (`server-timing`), to callers that said who they are or what they have left.

    Attributes:
        counts: calls by what became of them.
    """

    def __init__(
        self, policy: Policy | None = None, *, service: str = "", timings: bool = True
    ) -> None:
        self.ending = Stop()
        self._idle: Callable[[], object] | None = None
        self._methods: dict[str, tuple[Any, ThreadMethod]] = {}
        super().__init__(policy, service=service, timings=timings)

    def _renew(self) -> None:
        self._methods.clear()

    @property
    def in_flight(self) -> int:
        """Calls whose handlers run."""
        return len(self.threads)

    @property
    def stopping(self) -> bool:
        """Whether the stop has begun. To be read in any thread."""
        return self.ending.begun

    def announce(self) -> None:
        """The stop has begun: `stopping` is true from now on. New calls are still served."""
        self.ending.begin()

    def close(self, idle: Callable[[], object] | None = None) -> None:
        """Turn new calls away with UNAVAILABLE, and those that are in the queue.

        `idle` is called when none is in flight: here, or in the thread of the last one, and perhaps
        again for one that was turned away.
        """
        self.ending.begin()
        self._idle = idle
        self.ending.closed = True
        self._look()

    def thread_done(self, call: object) -> None:
        """See `Rules`."""
        super().thread_done(call)
        if self.ending.closed:
            self._look()

    def _look(self) -> None:
        if self._idle is not None and not self.threads:
            self._idle()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of a call; for grpc."""
        arrival = monotonic()
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        path = handler_call_details.method
        known = self._methods.get(path)
        if known is None or known[0] is not handler:
            if len(self._methods) >= _MOST:
                self._methods.clear()
            self._methods[path] = known = (handler, ThreadMethod(self, path, handler))
        return known[1].handler(arrival, handler_call_details.invocation_metadata)
