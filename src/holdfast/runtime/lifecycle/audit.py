"""What the host does about signals, and the record that each of them leaves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol

from holdfast.domain.lifecycle.meaning import DEFAULT_MEANINGS, Meaning, Meanings
from holdfast.domain.lifecycle.phase import Phase, StopAsked
from holdfast.runtime.lifecycle.process import Process
from holdfast.runtime.lifecycle.shelter import call, name_of, why
from holdfast.runtime.signals.note import SignalNote
from holdfast.runtime.stacks import dump

__all__ = ["Audit", "SignalChannelLike", "SignalSource"]

_LONGEST_DUMP: Final = 60_000
"""Characters of a dump that are kept in a record; what is written to stderr has all of it."""


class SignalChannelLike(Protocol):
    """A channel of signals."""

    def __aiter__(self) -> Any: ...
    async def __anext__(self) -> SignalNote: ...
    def close(self) -> None: ...


class SignalSource(Protocol):
    """Where signals come from: `holdfast.runtime.signals.Signals`, or a fake of it."""

    @property
    def meanings(self) -> Meanings: ...
    def subscribe(self) -> SignalChannelLike: ...


class Audit:
    """Listens to signals on behalf of the host.

    Attributes:
        reloads: are called when the configuration is to be read again.
        with_stacks: whether every record of a signal has the stacks of all tasks and threads.
        write_dump: is given a dump that was asked for.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.reloads: list[Callable[[], Any]] = []
        self.with_stacks = False
        self.write_dump: Callable[[str], object] = _to_stderr
        self._channel: SignalChannelLike | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._again = False
        self._reloading: asyncio.Task[None] | None = None

    def listen(self, signals: SignalSource) -> None:
        """Do what the signals of `signals` mean, until `close`."""
        self._channel = channel = signals.subscribe()
        self._run(self._listen(channel, signals.meanings), "signals of the host")

    def close(self) -> None:
        """Listen no more."""
        if self._channel is not None:
            self._channel.close()
        for task in tuple(self._tasks):
            task.cancel()

    def _run(self, coro: Any, name: str) -> asyncio.Task[None]:
        process = self._process
        task = process.driver.loop.create_task(coro, name=name, context=process.context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self, channel: SignalChannelLike, meanings: Meanings) -> None:
        async for note in channel:
            self.heard(note, meanings)

    def heard(self, note: SignalNote, meanings: Meanings = DEFAULT_MEANINGS) -> None:
        """One signal: record it, with the phases before and after, and do what it means."""
        process = self._process
        meaning = meanings.get(note.name, Meaning.IGNORE)
        before = after = process.phase
        asked = StopAsked(note.name, f"from {note.sender}")
        if meaning is Meaning.STOP:
            after = process.foresee(asked)
        data = {
            **note.as_dict(),
            "meaning": str(meaning),
            "before": str(before),
            "after": str(after),
            "again": meaning is Meaning.STOP and before.stopping,
        }
        if self.with_stacks:
            data["stacks"] = dump(_LONGEST_DUMP)
        process.record("signal.received", note.name, f"from {note.sender}", data=data)
        match meaning:
            case Meaning.STOP:
                process.post(asked)
            case Meaning.RELOAD:
                self.reload(note.line())
            case Meaning.DUMP:
                self.dump(note.line())
            case Meaning.DUMP_AND_EXIT | Meaning.IGNORE:
                pass  # the first is done by its handler, where the loop may be stuck

    # -- dump ------------------------------------------------------------------------------------

    def dump(self, cause: str) -> None:
        """Write the stacks of all tasks and threads, and go on."""
        text = dump()
        try:
            self.write_dump(text)
        except Exception as error:
            self._process.record("dump.written", "stacks", f"failed: {why(error)}", cause=cause)
            return
        lines = text.count("\n")
        self._process.record(
            "dump.written", "stacks", f"{lines} lines", cause=cause, data={"lines": lines}
        )

    # -- reload ----------------------------------------------------------------------------------

    def reload(self, cause: str) -> None:
        """Call what was registered for a reload; what comes meanwhile is done once after it."""
        process = self._process
        if process.phase is not Phase.RUNNING:
            detail = f"not while the process is {process.phase}"
            process.record("config.refused", "reload", detail, cause=cause)
            return
        if self._reloading is not None and not self._reloading.done():
            self._again = True
            return
        self._reloading = self._run(self._reload(cause), "reload")

    async def _reload(self, cause: str) -> None:
        process = self._process
        while True:
            self._again = False
            for callback in tuple(self.reloads):
                try:
                    await call(callback)
                except Exception as error:
                    detail = f"{name_of(callback)}: {why(error)}; the old one stays"
                    process.record("config.refused", "reload", detail, cause=cause)
                    break
            else:
                done = len(self.reloads)
                process.record("config.reloaded", "reload", cause=cause, data={"callbacks": done})
            if not self._again or process.phase is not Phase.RUNNING:
                return


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
