"""redis-py's `Retry`, whose attempts and pauses share one budget.

What is ours is never tried again, although it is a time-out of redis-py's as well. The loop is
written again here, as redis-py sleeps inside of its own without a look at the clock.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from redis.asyncio.retry import Retry as AsyncRetry
from redis.retry import Retry

from holdfast.adapters.redis.errors import Command
from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import NEVER, Duration

__all__ = ["bounded_retry", "plain_retry"]

# Ours have the base of theirs, or an object could not change from one to the other.
_Retry: Any = Retry
_AsyncRetry: Any = AsyncRetry


class _Blocking(_Retry):
    """To be mixed into a `redis.retry.Retry`."""

    holdfast_needed: Duration = 0.0

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
        while True:
            try:
                return do()
            except this._supported_errors as exc:
                if isinstance(exc, HoldfastError) or not (
                    is_retryable is None or is_retryable(exc)
                ):
                    raise
                failures += 1
                _ = fail(exc, failures) if with_failure_count else fail(exc)
                if 0 <= this._retries < failures:
                    raise
                pause = this._backoff.compute(failures)
                _room(pause, self.holdfast_needed, exc)
            if pause > 0:
                threading.Event().wait(pause)


class _OnLoop(_AsyncRetry):
    """To be mixed into a `redis.asyncio.retry.Retry`."""

    holdfast_needed: Duration = 0.0

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
        while True:
            try:
                return await do()
            except this._supported_errors as exc:
                if isinstance(exc, HoldfastError) or not (
                    is_retryable is None or is_retryable(exc)
                ):
                    raise
                failures += 1
                await (fail(exc, failures) if with_failure_count else fail(exc))
                if 0 <= this._retries < failures:
                    raise
                pause = this._backoff.compute(failures)
                _room(pause, self.holdfast_needed, exc)
            if pause > 0:
                await asyncio.sleep(pause)


def _final(exc: Exception, is_retryable: Callable[[Exception], bool] | None) -> bool:
    return isinstance(exc, HoldfastError) or not (is_retryable is None or is_retryable(exc))


def _room(pause: Duration, needed: Duration, error: Exception) -> None:
    """Refuse another attempt for which there is no time.

    Raises:
        InsufficientBudget: less is left than the pause and the attempt need.
    """
    command = Command("another attempt")
    if command.limit == NEVER:
        return
    try:
        command.admit(max(0.0, pause) + needed)
    except HoldfastError as refusal:
        raise refusal from error


@cache
def _variant(kind: Any, needed: Duration) -> Any:
    ours: Any = _OnLoop if issubclass(kind, AsyncRetry) else _Blocking
    body = {"holdfast_needed": needed, "__module__": kind.__module__, "__hash__": kind.__hash__}
    return type(kind.__name__, (ours, kind), body)


def bounded_retry(retry: Any, needed: Duration) -> Any:
    """A copy of `retry` that keeps within the budget.

    Args:
        retry: of redis-py, of either kind.
        needed: seconds that an attempt needs at least.
    """
    if retry is None:
        return None
    if isinstance(retry, _Blocking | _OnLoop):
        retry = plain_retry(retry)
    made = copy.copy(retry)
    kind: Any = type(retry)
    made.__class__ = _variant(kind, needed)
    return made


def plain_retry(retry: Any) -> Any:
    """What `bounded_retry` was made from."""
    if not isinstance(retry, _Blocking | _OnLoop):
        return retry
    made: Any = copy.copy(retry)
    kind: Any = type(retry)
    made.__class__ = kind.__bases__[1]
    return made
