"""What a test orders for one direction of the fault proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from holdfast.domain.instant import NEVER, Duration
from holdfast.testing.pump import Pump, Rules, Then

__all__ = ["Direction"]


class Direction:
    """What happens to the bytes in one direction: `FaultProxy.to_server` and `.to_client`."""

    def __init__(
        self,
        rules: Rules,
        order: Callable[[Callable[[], None]], None],
        pumps: Callable[[], Iterable[Pump]],
    ) -> None:
        self._rules = rules
        self._order = order
        self._pumps = pumps

    def delay(self, latency: Duration, jitter: Duration = 0.0) -> None:
        """Every byte is `latency` seconds late, give or take `jitter`. Their order stays.

        Raises:
            ValueError: a number is negative, or the jitter is more than the latency.
        """
        if not 0 <= jitter <= latency < NEVER:
            raise ValueError(f"need 0 <= jitter <= latency, got {latency=} and {jitter=}")
        self._set(latency=latency, jitter=jitter)

    def trickle(self, rate: float) -> None:
        """At most `rate` bytes per second, in small pieces; 2.0 is one byte every half second.

        Raises:
            ValueError: `rate` is not positive.
        """
        if not rate > 0:
            raise ValueError(f"a rate must be positive, got {rate}; stall() stops all")
        self._set(rate=rate)

    def stall(self) -> None:
        """Nothing moves, not even an end, until `resume`. The sender's buffers fill up."""
        self._set(stalled=True)

    def resume(self) -> None:
        """What was held back by `stall` goes on."""
        self._set(stalled=False)

    def limit(self, most: int, then: Then | str = Then.CUT) -> None:
        """Each connection carries `most` bytes, counted from its beginning.

        Args:
            most: bytes; those that a connection has carried already count.
            then: `cut` ends this direction, `reset` the connection, `stall` sends no more.

        Raises:
            ValueError: `most` is negative, or `then` is something else.
        """
        if most < 0:
            raise ValueError(f"a limit must be zero or more bytes, got {most}")
        self._set(most=most, then=Then(then))

    def cut(self) -> None:
        """End this direction of the connections that are open: a half-close, with a FIN.

        The other direction stays. What the sender goes on to say is thrown away.
        """

        def cut() -> None:
            for pump in self._pumps():
                pump.cut()

        self._order(cut)

    def heal(self) -> None:
        """Bytes move as they come again. A direction that was cut stays so."""
        self._set(latency=0.0, jitter=0.0, rate=NEVER, stalled=False, most=-1)

    def _set(self, **values: Any) -> None:
        def change() -> None:
            for name, value in values.items():
                setattr(self._rules, name, value)
            for pump in self._pumps():
                pump.work()

        self._order(change)
