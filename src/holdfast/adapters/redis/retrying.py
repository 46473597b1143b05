"""redis-py's `Retry`, whose attempts and pauses share one budget.

What is ours is never tried again, although it is a time-out of redis-py's as well. The loop is
written again here, as redis-py sleeps inside of its own without a look at the clock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

from redis.asyncio.retry import Retry as AsyncRetry
from redis.retry import Retry

from holdfast.adapters.redis.errors import Command, sent_by
from holdfast.adapters.redis.settings import Settings
from holdfast.adapters.redis.variants import kind_of, opaque, plain, variant
from holdfast.domain.errors import HoldfastError, InsufficientBudget
from holdfast.domain.instant import NEVER, Duration, Instant, format_duration

__all__ = ["UNTIL", "bounded_retry", "plain_retry"]

UNTIL: Final[ContextVar[Instant]] = ContextVar("holdfast.redis", default=NEVER)
"""Instant at which whoever waits for a connection has to leave. What connects may go on then, but
begins nothing new."""

_SENT: Final = "it was sent, and its answer has not come"

_Retry = opaque(Retry)
_AsyncRetry = opaque(AsyncRetry)


class _RetryInThread(_Retry):  # type: ignore[misc,valid-type]
    """To be mixed into a `redis.retry.Retry`."""

    holdfast: Settings

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        """See `redis.retry.Retry`."""
        this: Any = self
        this._backoff.reset()
        failures = 0
        sent: Command | None = None
        while True:
            try:
                return do()
            except this._supported_errors as exc:
                sent = sent or sent_by(exc)
                if _final(exc, is_retryable):
                    if sent is not None and isinstance(exc, InsufficientBudget):
                        raise sent.over(f"{_SENT}; {exc.cause.detail}") from exc
                    raise
                failures += 1
                _ = fail(exc, failures) if with_failure_count else fail(exc)
                if 0 <= this._retries < failures:
                    raise
                pause = this._backoff.compute(failures)
                _room(pause, self.holdfast.refuse_below, exc, sent)
            if pause > 0:
                threading.Event().wait(pause)


class _RetryOnLoop(_AsyncRetry):  # type: ignore[misc,valid-type]
    """To be mixed into a `redis.asyncio.retry.Retry`."""

    holdfast: Settings

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        """See `redis.asyncio.retry.Retry`."""
        this: Any = self
        this._backoff.reset()
        failures = 0
        sent: Command | None = None
        while True:
            try:
                return await do()
            except this._supported_errors as exc:
                sent = sent or sent_by(exc)
                if _final(exc, is_retryable):
                    if sent is not None and isinstance(exc, InsufficientBudget):
                        raise sent.over(f"{_SENT}; {exc.cause.detail}") from exc
                    raise
                failures += 1
                await (fail(exc, failures) if with_failure_count else fail(exc))
                if 0 <= this._retries < failures:
                    raise
                pause = this._backoff.compute(failures)
                _room(pause, self.holdfast.refuse_below, exc, sent)
            if pause > 0:
                await asyncio.sleep(pause)


def _final(exc: Exception, is_retryable: Callable[[Exception], bool] | None) -> bool:
    return isinstance(exc, HoldfastError) or not (is_retryable is None or is_retryable(exc))


def _room(pause: Duration, needed: Duration, error: Exception, sent: Command | None) -> None:
    """Refuse another attempt for which there is no time.

    Raises:
        InsufficientBudget: less is left than the pause and the attempt need; nothing was sent.
        DeadlineExceeded: the same, and an attempt had been sent, so it may have been done.
    """
    command = Command("another attempt")
    until = min(command.limit, UNTIL.get())
    left, needs = until - command.now(), max(0.0, pause) + needed
    if left <= 0 or left < needs:
        detail = f"not begun, {format_duration(max(0.0, left))} left"
        if needs > 0:
            detail += f", {format_duration(needs)} needed"
        if sent is not None:
            raise sent.over(f"{_SENT}; another attempt: {detail}") from error
        raise command.insufficient(command.cause(detail)) from error


def bounded_retry(retry: Any, settings: Settings) -> Any:
    """A copy of `retry`, of either kind, that keeps within the budget."""
    if retry is None:
        return None
    theirs = plain(kind_of(retry))
    ours: Any = _RetryOnLoop if issubclass(theirs, AsyncRetry) else _RetryInThread
    return _as(variant(ours, theirs, settings), retry)


def plain_retry(retry: Any) -> Any:
    """What `bounded_retry` was made from."""
    return None if retry is None else _as(plain(kind_of(retry)), retry)


def _as(kind: Any, retry: Any) -> Any:
    # Made anew, as redis-py 5 has slots, so that an object cannot take on another class.
    made = object.__new__(kind)
    for name in _STATE:
        setattr(made, name, getattr(retry, name))
    if hasattr(made, "__dict__"):
        made.__dict__.update(getattr(retry, "__dict__", {}))
    return made


_STATE: Final = ("_backoff", "_retries", "_supported_errors")
