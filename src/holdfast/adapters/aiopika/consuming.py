"""A consumer whose handlers have the deadline of who published, and that loses no message.

Each message is a scope of its own, under the consumer's. What becomes of it when that has ended is
decided in `verdicts`; here it is done, inside a shield, so that a cancellation cannot come between
the work and its acknowledgement.

The traps: aio-pika runs the callback of a consumer in a task of its own, with the context in which
the connection was made, and cancels it when the channel closes. So the callback only hands over.
And what the broker has given us stays ours until it is settled or the channel closes: a message
that could not be settled comes back then, and is done twice. Handlers have to bear that.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Final, cast

from pamqp.commands import Basic

from holdfast.adapters.aiopika.verdicts import (
    Ending,
    Expired,
    Verdict,
    attempted,
    attempts_of,
    deliveries_of,
    verdict,
)
from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import InsufficientBudget, ScopeEnded, UsageError
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.tree import Outcome
from holdfast.domain.wire.settings import DEFAULT_WIRE, WireSettings
from holdfast.runtime.ambient import shield
from holdfast.runtime.carry import Received, extract
from holdfast.runtime.clock import fresh_span_id
from holdfast.runtime.shield import Shield
from holdfast.runtime.tasks import TaskGroup, tasks

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

__all__ = ["Consumer"]

_log: Final = logging.getLogger("holdfast.aiopika")
_ENDS_ALL: Final = (SystemExit, KeyboardInterrupt)
"""What ends the process, from a handler too."""


class _Telling(Shield):
    """A shield whose time runs from the beginning, cancelled or not: a broker may be frozen."""

    def shield_limit(self, now: Instant, grace: Duration) -> Instant:
        """See `Node`."""
        return min(super().shield_limit(now, grace), self.opened_at + grace)


class Consumer:
    """Handles the messages of one queue, several at once.

        consumer = Consumer(queue, handle, prefetch=8)
        host.add("jobs", run=consumer.run, stop=consumer.stop)

    Args:
        queue: of a channel of its own, with publisher confirms unless `attempts` is 1; with
            `connect_robust` it goes on after a reconnect.
        handler: awaited with each message; to return is to acknowledge it. It may settle a message
            itself.
        name: of the scopes; that of the queue by default.
        prefetch: messages that are handled at once.
        attempts: how often a message is tried whose handler raises; then it is rejected.
        deliveries: how often it may come back without being settled, where the queue counts that.
        expired: what becomes of what nobody waits for any more: `reject` (so it goes where the
            queue sends its dead letters) or `ack`.
        cap: seconds that a message gets at most, also without a deadline.
        trust_stage: whether to believe the release stage that was sent.
        grace: seconds that telling the broker may take, also after a cancellation.
        wire: names and grammars of the headers.

    Attributes:
        counts: `done`, `expired` (before it began), `late` (while it ran), `failed` (attempts),
            `cut` (put back), `poison`; `rejected` and `unsettled` (the broker could not be told).

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        queue: AbstractQueue,
        handler: Callable[[AbstractIncomingMessage], Awaitable[object]],
        *,
        name: str = "",
        prefetch: int = 10,
        attempts: int = 3,
        deliveries: int = 20,
        expired: Expired = "reject",
        cap: Duration = NEVER,
        trust_stage: bool = False,
        grace: Duration = 1.0,
        wire: WireSettings = DEFAULT_WIRE,
    ) -> None:
        if prefetch < 1 or attempts < 1 or deliveries < 1 or not 0 < grace < NEVER:
            raise ValueError("prefetch, attempts, deliveries and grace must be positive")
        if expired not in ("reject", "ack"):
            raise ValueError(f"expired is 'reject' or 'ack', not {expired!r}")
        self._queue = queue
        self._handler = handler
        self.name = name or queue.name or "consumer"
        self._prefetch = prefetch
        self._attempts = attempts
        self._deliveries = deliveries
        self._expired: Expired = expired
        self._cap = cap
        self._trust_stage = trust_stage
        self._grace = grace
        self._wire = wire
        self.counts: Counter[str] = Counter()
        self._group: TaskGroup | None = None
        self._context: contextvars.Context | None = None
        self._over: asyncio.Future[None] | None = None
        self._stopped = False
        self._open: set[Received] = set()
        self._handed: dict[AbstractIncomingMessage, None] = {}
        """Messages whose handling has not taken its first step."""

    async def run(self) -> None:
        """Consume until `stop` is called, or the scope around it ends.

        When it is stopped, what is being handled is finished. When it is cancelled, that goes back
        into the queue.

        Raises:
            ConnectionError: the channel was closed, and is not one that opens again by itself.
            UsageError: it runs already; or its channel has no publisher confirms, so that another
                attempt could get lost.
            Exception: of aio-pika, where it cannot begin.
        """
        if self._group is not None:
            raise UsageError(f"consumer '{self.name}' runs already")
        channel = self._queue.channel
        if self._attempts > 1 and not getattr(channel, "publisher_confirms", False):
            raise UsageError(
                f"consumer '{self.name}': another attempt is a copy that the broker confirms; open"
                " its channel with publisher_confirms=True, or allow attempts=1 only"
            )
        self._over = asyncio.get_running_loop().create_future()
        if self._stopped:
            self._over.set_result(None)
        closed = cast("asyncio.Future[Any]", channel.closed())  # it says less than it gives
        channel.close_callbacks.add(self._lost)
        try:
            async with tasks(f"consume {self.name}") as self._group:
                self._context = contextvars.copy_context()
                failure = await self._consume(self._over, closed)
        finally:
            channel.close_callbacks.discard(self._lost)
            lost = closed.done() and not self._over.done()
            closed.cancel()
            self._group = self._over = None
            self._stopped = False
            # A task that is cancelled before its first step never learns of it.
            for message in tuple(self._handed):
                self._handed.pop(message)
                self.counts[Ending.CUT.value] += 1
                await self._settle(message, Verdict.REQUEUE, 0)
        if failure is not None:
            raise failure
        if lost:
            raise ConnectionError(f"consumer '{self.name}': its channel was closed")

    async def _consume(
        self, over: asyncio.Future[None], closed: asyncio.Future[Any]
    ) -> Exception | None:
        """Consume until `over` or `closed`. The error where that could not begin, if any."""
        tag = f"holdfast.{fresh_span_id()}"
        try:
            # A question to the broker that is cut costs aio-pika the channel.
            async with shield(self._grace, name="begin consuming"):
                await self._queue.channel.set_qos(prefetch_count=self._prefetch)
                await self._queue.consume(self._arrived, consumer_tag=tag)
            await asyncio.wait([over, closed], return_when="FIRST_COMPLETED")
        except Exception as error:
            return error
        finally:
            if not closed.done():
                await self._leave(tag)
        return None

    async def stop(self) -> None:
        """Take nothing new; `run` returns when what is being handled has ended.

        Where it does not run yet, it returns as soon as it does.
        """
        self._stopped = True
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    async def _leave(self, tag: str) -> None:
        """Tell the broker to send nothing more. What comes all the same is put back."""
        try:
            async with _Telling("stop consuming", self._grace):
                await self._queue.cancel(tag)
        except Exception as error:
            _log.warning("consumer '%s' could not say that it stops: %r", self.name, error)

    # -- one message -----------------------------------------------------------------------------

    async def _arrived(self, message: AbstractIncomingMessage) -> None:
        group, context, over = self._group, self._context, self._over
        if group is not None and context is not None and over is not None and not over.done():
            handling = self._one(message)
            try:
                context.run(group.start, handling, name="message")
            except (ScopeEnded, UsageError):
                pass  # it ends just now
            else:
                self._handed[message] = None
                return
        self.counts[Ending.CUT.value] += 1
        await self._settle(message, Verdict.REQUEUE, 0)

    async def _one(self, message: AbstractIncomingMessage) -> None:
        self._handed.pop(message, None)
        headers, queue = message.headers, self._queue
        failed = attempts_of(headers, queue.name)
        arguments = getattr(queue, "arguments", None)
        delivered = deliveries_of(headers, arguments, message.redelivered)
        scope: Received | None = None
        if delivered >= self._deliveries:
            ending = Ending.POISON
            _log.error("%s was delivered %d times, unsettled", self._named(message), delivered)
        else:
            scope = extract(
                message.headers,
                name=self.name,
                cap=self._cap,
                trust_stage=self._trust_stage,
                wire=self._wire,
            )
            try:
                ending = await self._handled(message, scope, failed)
            except (asyncio.CancelledError, *_ENDS_ALL):
                self.counts[Ending.CUT.value] += 1
                await self._settle(message, Verdict.REQUEUE, failed)
                raise
        self.counts[ending.value] += 1
        then = verdict(ending, failed, self._attempts, self._expired)
        await self._settle(message, then, failed, scope)

    async def _handled(
        self, message: AbstractIncomingMessage, scope: Received, failed: int
    ) -> Ending:
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        self._open.add(scope)
        try:
            async with scope:
                await self._handler(message)
        except _ENDS_ALL:
            raise
        except BaseException as error:
            if _is_from_outside(error, scope, task, before):
                raise
            ending = _ending_of(scope, error)
            if ending is Ending.FAILED:
                _log.error(
                    "%s failed, attempt %d of %d: %r",
                    self._named(message),
                    failed + 1,
                    self._attempts,
                    error,
                    exc_info=error,
                )
            return ending
        finally:
            self._open.discard(scope)
        return Ending.DONE

    def _named(self, message: AbstractIncomingMessage) -> str:
        return f"message {message.message_id!r} of '{self._queue.name}'"

    def _lost(self, *_: object) -> None:
        """The channel is gone, so the broker gives what is being handled to somebody else."""
        for scope in tuple(self._open):
            if scope.parent is not None and scope.outcome is None:
                scope.cancel("its channel was closed", kind=CauseKind.DISCONNECT)

    # -- telling the broker ----------------------------------------------------------------------

    async def _settle(
        self,
        message: AbstractIncomingMessage,
        then: Verdict,
        failed: int,
        scope: Received | None = None,
    ) -> None:
        if message.processed:  # by the handler
            return
        try:
            async with _Telling("settle", self._grace):
                match then:
                    case Verdict.ACK:
                        await message.ack()
                    case Verdict.REQUEUE:
                        await message.reject(requeue=True)
                    case Verdict.REJECT:
                        self.counts["rejected"] += 1
                        await message.reject(requeue=False)
                    case Verdict.AGAIN:
                        await self._again(message, failed, scope)
        except Exception as error:
            # It is still the broker's, who will deliver it again when the channel is closed.
            self.counts["unsettled"] += 1
            _log.warning("%s could not be settled: %r", self._named(message), error)

    async def _again(
        self, message: AbstractIncomingMessage, failed: int, scope: Received | None
    ) -> None:
        """Put it at the end of the queue, with one attempt more, and only then let go of it."""
        again: Any = copy(message)
        again.headers = attempted(message.headers, self._queue.name, failed + 1)
        again.user_id = None  # of who published it, which a broker refuses from others
        if scope is not None and again.expiration is not None:
            again.expiration = min(again.expiration, max(0.0, scope.due.asked - scope.driver.now()))
        told = await self._queue.channel.default_exchange.publish(again, self._queue.name)
        if isinstance(told, Basic.Ack):
            await message.ack()
        else:  # it came back: there is no such queue any more
            await message.reject(requeue=True)


def _is_from_outside(
    error: BaseException, scope: Received, task: asyncio.Task[Any] | None, before: int
) -> bool:
    """Whether it was not the handler that raised it: its task is cancelled, or thrown away.

    A handler raises `CancelledError` by itself where it waits for something that was cancelled.
    """
    if isinstance(error, asyncio.CancelledError):
        return scope.reached() is not None or (task is not None and task.cancelling() > before)
    if isinstance(error, GeneratorExit):
        try:
            return asyncio.current_task() is not task
        except RuntimeError:  # no loop: it is collected
            return True
    return False


def _ending_of(scope: Received, error: BaseException) -> Ending:
    # Its own deadline, or a cap that is ours: then there may be somebody who still waits.
    late = scope.due.asked <= scope.driver.now()
    if scope.outcome is Outcome.REFUSED:
        if isinstance(error, InsufficientBudget):
            return Ending.EXPIRED if late else Ending.FAILED
        return Ending.CUT
    cause = scope.reached()
    if cause is None:
        return Ending.FAILED
    if cause.kind is not CauseKind.DEADLINE:
        return Ending.CUT
    return Ending.LATE if late else Ending.FAILED
