"""A consumer of signals, with its own set of them, on its own loop."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from holdfast.domain.errors import UsageError
from holdfast.domain.lifecycle.meaning import Meanings, by_priority
from holdfast.runtime.scope import ambient
from holdfast.runtime.signals.note import SignalNote

__all__ = ["BOUND", "SignalChannel"]

BOUND: Final = 64
"""Notes that wait in a channel before equal ones are joined."""


class SignalChannel:
    """Signals as they come: `async for note in channel`, or `await channel.get()`.

    Made by `Signals.subscribe`. Of the notes that wait, the one that matters most comes first. A
    note means that the signal came at least once: the kernel joins equal signals that wait, and a
    full channel joins them too, beginning with the most frequent; the last one that is left of a
    signal always stays.

    It ends when it is closed, with its `with` block, with the scope in which it was made, and with
    `Signals`. What waits then can still be taken.

    Attributes:
        numbers: of the signals that it gets.
        joined: notes that were joined with an equal one because the channel was full.
    """

    def __init__(
        self,
        numbers: frozenset[int],
        meanings: Meanings,
        bound: int,
        forget: Callable[[SignalChannel], None],
    ) -> None:
        self.numbers = numbers
        self.joined = 0
        self._meanings = meanings
        self._bound = max(bound, len(numbers), 1)
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._scope = ambient()
        self._inbox: deque[SignalNote] = deque()
        self._waiting: list[SignalNote] = []
        self._changed = asyncio.Event()
        self._closed = False

    def __enter__(self) -> SignalChannel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __aiter__(self) -> SignalChannel:
        return self

    async def __anext__(self) -> SignalNote:
        if await self._some():
            return self._waiting.pop(0)
        raise StopAsyncIteration

    async def get(self) -> SignalNote:
        """The next signal.

        Raises:
            UsageError: the channel has ended, and nothing waits in it.
        """
        if await self._some():
            return self._waiting.pop(0)
        raise UsageError("this channel of signals has ended")

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed or (self._scope is not None and self._scope.outcome is not None)

    def close(self) -> None:
        """End it: nothing more comes in, and who waits is told. Callable from any thread."""
        self._closed = True
        self._forget(self)
        self.poke(self._take_in)

    # -- for Signals -----------------------------------------------------------------------------

    def offer(self, note: SignalNote) -> bool:
        """Take a note in, from any thread or a handler; false when the channel has ended."""
        if self.closed:
            return False
        # The loop takes over in one turn what came together, and in order.
        self._inbox.append(note)
        return self.poke(self._take_in)

    def poke(self, call: Callable[[], object]) -> bool:
        """Let the loop run `call`; false when the loop has gone."""
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            self._closed = True
            return False
        return True

    # -- on the loop -----------------------------------------------------------------------------

    async def _some(self) -> bool:
        self._take_in()
        while not self._waiting:
            if self.closed:
                return False
            self._changed.clear()
            await self._changed.wait()
            self._take_in()
        return True

    def _take_in(self) -> None:
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
            if len(self._waiting) > self._bound:
                self._join()
        self._waiting = list(by_priority(self._waiting, self._meanings, lambda note: note.name))
        self._changed.set()

    def _join(self) -> None:
        ((number, _),) = Counter(note.number for note in self._waiting).most_common(1)
        for index in range(len(self._waiting) - 1, -1, -1):
            if self._waiting[index].number == number:
                del self._waiting[index]
                self.joined += 1
                return
