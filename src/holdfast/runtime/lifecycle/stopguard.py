"""What the platform gives is the end, whatever the process is stuck in: seen from outside the loop.

A host bounds everything that runs on its loop. It cannot bound the loop: a hook, a handler or a
`print` to a pipe that nobody reads may stand still in plain code, and no deadline is heard. So
signals are counted where they are read, and the time of the stop is watched by a thread.
"""

from __future__ import annotations

from typing import Final

from holdfast.domain.instant import Duration, format_duration
from holdfast.domain.lifecycle.meaning import Meaning
from holdfast.domain.lifecycle.phase import ExitCode, Phase
from holdfast.runtime.clock import monotonic
from holdfast.runtime.lastresort import LastResort
from holdfast.runtime.lifecycle.host import Host
from holdfast.runtime.lifecycle.terms import HostTerms
from holdfast.runtime.signals.note import SignalNote

__all__ = ["StopGuard"]

_HURRIED: Final = HostTerms().hurried
_SLACK: Final[Duration] = 1.0
"""Seconds behind its own end that a stop gets, before it is taken for stuck."""
_SIGNALLED: Final = 128


class StopGuard:
    """Ends the process when its stop does not. One for a process that is told by signals.

    Args:
        total: seconds that the whole stop takes at most.
        cleanup: of these, for the clean-up.
        grace: seconds that the platform gives; never less than `total`.
    """

    def __init__(self, total: Duration, cleanup: Duration, grace: Duration) -> None:
        self._cleanup = cleanup
        self._hard = total + min(_SLACK, max(0.0, grace - total))
        self._resort = LastResort(self._held_up)
        self._host: Host | None = None
        self._notes: list[SignalNote] = []
        self._over = False

    def watch(self, host: Host) -> None:
        """Whose stop it is; what is told goes into its journal."""
        self._host = host

    def told(self, note: SignalNote) -> None:
        """A signal has asked for a stop; to be called in any thread, as soon as it was read."""
        if self._over:
            return
        self._notes.append(note)
        if len(self._notes) == 1:
            self.begun()
        else:  # force: what is under way has a moment, and so has the clean-up
            at = monotonic() + min(self._cleanup, _HURRIED) + _SLACK
            self._resort.by(at, ExitCode.FORCED, "it was told to stop, and told again")

    def begun(self) -> None:
        """The stop has begun, for whatever reason."""
        why = f"the stop began {format_duration(self._hard)} ago"
        code = ExitCode.TIMED_OUT if len(self._notes) < 2 else ExitCode.FORCED
        self._resort.by(monotonic() + self._hard, code, why)

    def stopped(self, code: ExitCode) -> None:
        """Everything was stopped; what is left are threads that the interpreter waits for."""
        self._over = True
        self._resort.by(monotonic() + self._cleanup, code, "everything was stopped")

    def quitting(self, note: SignalNote) -> None:
        """The process dumps its stacks and ends at once: nobody else will tell.

        May be called between any two instructions of the main thread, so it waits for no lock.
        """
        host, code = self._host, _SIGNALLED + note.number
        if host is None:
            return
        data = self._audit(host, note, Meaning.DUMP_AND_EXIT, str(Phase.STOPPED), host.stopping)
        write = host.journal.write
        write("signal.received", note.name, f"from {note.sender}", data=data)
        write("dump.written", "stacks", "to standard error", cause=note.name)
        write("process.ended", "quit", f"exit code {code}", cause=note.name, data={"code": code})

    def _held_up(self, text: str, code: int) -> bool:
        """The last resort ends the process; whether its host has not ended, and this tells it."""
        host, notes = self._host, self._notes
        if host is None or host.phase is Phase.STOPPED:
            return False
        write = host.journal.write
        heard = sum(record.data.get("meaning") == Meaning.STOP for record in host.journal.records)
        for note in notes[heard:]:  # the host is stuck with the loop, and knows nothing of these
            again = note is not notes[0]
            data = self._audit(host, note, Meaning.STOP, str(host.phase), again)
            write("signal.received", note.name, f"from {note.sender}", at=note.at, data=data)
        cause = host.cause or (notes[0].line() if notes else "")
        write("component.forced", "event loop", text, cause=cause)
        name = ExitCode(code).name.lower()
        write("process.ended", name, f"exit code {code}", cause=cause, data={"code": code})
        return True

    def _audit(
        self, host: Host, note: SignalNote, meaning: Meaning, after: str, again: bool
    ) -> dict[str, object]:
        return {
            **note.as_dict(),
            "meaning": str(meaning),
            "before": str(host.phase),
            "after": after,
            "again": again,
        }
