"""What the platform gives is the end of a supervisor as well, whatever it is stuck in.

Its workers have last resorts of their own. But who looks after them may stand still in plain code,
for example in the middle of a line that nobody reads, and then sees neither their end nor its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from holdfast.domain.instant import Duration, format_duration
from holdfast.runtime.clock import monotonic
from holdfast.runtime.lastresort import LastResort
from holdfast.runtime.lifecycle import ExitCode, Journal
from holdfast.runtime.signals import SignalNote

__all__ = ["FleetGuard"]

_SLACK: Final[Duration] = 0.5
"""Seconds behind its own end that the stop gets, before the supervisor is taken for stuck."""
_STOPPING: Final = ("SIGTERM", "SIGINT", "SIGQUIT")


class FleetGuard:
    """Ends the supervisor when its stop does not, and its workers with it.

    Args:
        patience: seconds that workers are given to stop.
        force: the same, when they are told to cut what they serve.
        workers: the pids of those that are there.
        journal: is told.
    """

    def __init__(
        self,
        patience: Callable[[], Duration],
        force: Duration,
        workers: Callable[[], Iterable[int]],
        journal: Journal,
    ) -> None:
        self._patience = patience
        self._force = force
        self._workers = workers
        self._journal = journal
        self._begun = False
        self._resort = LastResort(self._held_up)

    def told(self, note: SignalNote) -> None:
        """One signal; to be called in any thread, as soon as it was read."""
        if note.name not in _STOPPING:
            return
        if self._begun and note.name != "SIGQUIT":
            why = "it was told to stop, and told again"
            self._resort.by(monotonic() + self._force + _SLACK, ExitCode.FORCED, why)
        self.begun()

    def begun(self) -> None:
        """The stop has begun, for whatever reason."""
        if self._begun:
            return
        self._begun = True
        hard = self._patience() + _SLACK
        why = f"the stop began {format_duration(hard)} ago"
        self._resort.by(monotonic() + hard, ExitCode.TIMED_OUT, why)

    def _held_up(self, text: str, code: int) -> bool:
        for pid in tuple(self._workers()):
            with suppress(ChildProcessError, ProcessLookupError):
                # Who was waited for already has given the number back, perhaps to somebody else.
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                os.kill(pid, signal.SIGKILL)
        self._journal.write("component.forced", "supervisor", text)
        self._journal.write("process.ended", detail=f"exit code {code}", data={"code": code})
        return True
