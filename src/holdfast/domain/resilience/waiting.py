"""What waits for a worker: who is next, and who waits in vain.

Two orders. `fifo` is the order of arrival. `deadline` is earliest deadline first: of all orders it
keeps the most deadlines as long as all of them can be kept, and the fewest when they cannot, for it
goes on with what is about to be late. So an item whose deadline has passed must be gone before
`pop` is asked, which is what `expired` is for.

Everything is by number, so that an item can leave from the middle (its caller has gone) in constant
time. Numbers that have left stay in the line and the heap until they come up, or until they are the
larger part of it.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from holdfast.domain.instant import NEVER, Instant

__all__ = ["Order", "Waiting"]

T = TypeVar("T")
Order: TypeAlias = Literal["fifo", "deadline"]

_STALE: Final = 64
"""So many numbers of items that have left are carried along without a look."""


class Waiting(Generic[T]):
    """A line of items, each with a limit.

    Args:
        order: `fifo`, or `deadline` for the earliest limit first (and those that have none last, in
            the order of arrival).
    """

    __slots__ = ("_heap", "_items", "_line", "_next", "order")

    def __init__(self, order: Order = "fifo") -> None:
        if order not in ("fifo", "deadline"):
            raise ValueError(f"the order is 'fifo' or 'deadline', not {order!r}")
        self.order: Final = order
        self._items: dict[int, tuple[T, Instant]] = {}
        self._line: deque[int] = deque()
        self._heap: list[tuple[Instant, int]] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: T, limit: Instant = NEVER) -> int:
        """Let `item` wait until the instant `limit` at most; its number."""
        number = self._next
        self._next += 1
        self._items[number] = (item, limit)
        if self.order == "fifo" or limit == NEVER:
            self._line.append(number)
        if limit != NEVER:
            heapq.heappush(self._heap, (limit, number))
        return number

    def pop(self) -> T | None:
        """The next item, which leaves; none when nobody waits."""
        if self.order == "deadline" and self._first() is not None:
            return self.remove(heapq.heappop(self._heap)[1])
        line, items = self._line, self._items
        while line:
            if (number := line.popleft()) in items:
                return self.remove(number)
        return None

    def remove(self, number: int) -> T | None:
        """The item of that number, which leaves; none when it has left already."""
        found = self._items.pop(number, None)
        if found is None:
            return None
        most = 2 * len(self._items) + _STALE
        if len(self._line) > most:
            self._line = deque(kept for kept in self._line if kept in self._items)
        if len(self._heap) > most:
            self._heap = [kept for kept in self._heap if kept[1] in self._items]
            heapq.heapify(self._heap)
        return found[0]

    def earliest(self) -> Instant:
        """The earliest limit of all that wait; infinite where none has one."""
        first = self._first()
        return NEVER if first is None else first

    def expired(self, now: Instant) -> list[T]:
        """Those whose limit is `now` or before, the earliest first; they leave."""
        late: list[T] = []
        while (first := self._first()) is not None and first <= now:
            item = self.remove(heapq.heappop(self._heap)[1])
            if item is not None:
                late.append(item)
        return late

    def clear(self) -> list[T]:
        """All that wait, in the order of arrival; they leave."""
        left = [item for item, _ in self._items.values()]
        self._items.clear()
        self._line.clear()
        self._heap.clear()
        return left

    def _first(self) -> Instant | None:
        heap = self._heap
        while heap and heap[0][1] not in self._items:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
