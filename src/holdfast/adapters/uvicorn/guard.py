"""The limit on the time that a client takes for its headers.

A client that connects and says nothing, or says it a byte at a time, holds a connection in vain.
Where the headers come in one piece, as they nearly always do, this costs no timer; else one entry
in the timers of the loop, and never a task.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.wire.problem import PROBLEM_TYPE, problem
from holdfast.runtime.driver import driver_of
from holdfast.runtime.timers import Alarm

__all__ = ["ARRIVAL", "HeaderGuard", "HeaderTerms", "too_slow"]

ARRIVAL: Final = "holdfast.arrival"
"""Key of the ASGI scope: the monotonic instant at which the first byte of the request came."""


class HeaderTerms(Protocol):
    """What the guard needs to know; it may change at any time.

    Attributes:
        header: seconds for the headers of a request; infinite for no limit.
        observed: whether a limit that is passed is counted and nothing more.
        service: name of this hop in the answer.
        counts: where it is counted.
    """

    @property
    def header(self) -> Duration: ...
    @property
    def observed(self) -> bool: ...
    @property
    def service(self) -> str: ...
    @property
    def counts(self) -> Counter[str]: ...


class HeaderGuard:
    """The limit on the headers of one connection, request after request."""

    __slots__ = ("_alarm", "_began", "_driver", "_expired", "_limit", "_terms", "now")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, terms: HeaderTerms, expired: Callable[[bytes], None]
    ) -> None:
        self._driver = driver_of(loop)
        self.now = self._driver.now
        self._terms = terms
        self._expired = expired
        self._alarm: Alarm | None = None
        self._began: Instant = 0.0
        self._limit: Duration = math.inf

    @property
    def armed(self) -> bool:
        """Whether the headers of a request are waited for."""
        return self._alarm is not None

    def arm(self, began: Instant) -> None:
        """Wait for headers that began at `began`; does nothing when they are waited for already."""
        if self._alarm is None and self._terms.header < math.inf:
            self._began, self._limit = began, self._terms.header
            self._alarm = self._driver.alarm(began + self._limit, self._ring)

    def drop(self) -> None:
        """The headers are complete, or the connection is gone."""
        alarm, self._alarm = self._alarm, None
        if alarm is not None:
            self._driver.drop(alarm)

    def _ring(self) -> None:
        # The alarm is kept as a mark: while these headers last they are counted once.
        counts = self._terms.counts
        if self._terms.observed:
            counts["would_exceed_header"] += 1
            return
        counts["header_timeout"] += 1
        self._expired(self._answer())

    def _answer(self) -> bytes:
        """The body of the 408, in the same form as any other end by a limit."""
        elapsed = self._driver.now() - self._began
        service = self._terms.service
        cause = Cause(
            CauseKind.DEADLINE, "header", service, self._began, self._limit, elapsed,
            "the headers of the request did not come in time",
        )  # fmt: skip
        return problem(cause, status=408, title="Request headers timed out")


def too_slow(body: bytes) -> list[tuple[bytes, bytes]]:
    """Header fields of the 408."""
    return [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
