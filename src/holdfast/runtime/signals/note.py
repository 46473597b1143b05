"""What was told about one signal: which, when, by whom.

The sender is told by number. What that number stands for can only be asked for while the sender
lives, so it is asked for at once, when the signal is read.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.domain.instant import Instant
from holdfast.runtime.clock import monotonic

__all__ = ["SignalNote", "describe", "name_of", "number_of"]

_COMMAND_CAP: Final = 200
"""Characters of a command line that are kept: it may hold secrets, and is for orientation only."""

_CODES: Final = {
    0: "SI_USER",
    0x80: "SI_KERNEL",
    -1: "SI_QUEUE",
    -2: "SI_TIMER",
    -3: "SI_MESGQ",
    -4: "SI_ASYNCIO",
    -5: "SI_SIGIO",
    -6: "SI_TKILL",
}
_SENT: Final = frozenset({"SI_USER", "SI_QUEUE", "SI_TKILL", "SI_MESGQ"})
"""Codes with which the sender is a process and told."""


@dataclass(frozen=True, slots=True)
class SignalNote:
    """One signal that the process got; at least one: the kernel joins equal ones that wait.

    Attributes:
        number: of the signal on this system.
        name: as the system writes it, for example `SIGTERM`.
        at: monotonic instant at which it was read.
        pid: of the sender; 0 when the sender is outside the pid namespace or is the kernel; none
            when it is not told.
        uid: real user of the sender; none when it is not told.
        code: how it was sent: `SI_USER` (kill), `SI_QUEUE` (sigqueue), `SI_TKILL` (a thread),
            `SI_KERNEL` (a terminal, the kernel itself); empty when it is not told.
        process: name of the sender; empty when it was gone already or is not told.
        command: its command line, 200 characters at most.
    """

    number: int
    name: str
    at: Instant
    pid: int | None = None
    uid: int | None = None
    code: str = ""
    process: str = ""
    command: str = ""

    @property
    def sender(self) -> str:
        """Who sent it, in a few words for people."""
        if self.pid is None:
            return "unknown (a handler is not told)"
        if self.code not in _SENT:
            return "the kernel"
        if self.pid == 0:
            return "somebody outside the container (pid 0)"
        process = f" ({self.process})" if self.process else ""
        user = f" of user {self.uid}" if self.uid is not None else ""
        return f"process {self.pid}{process}{user}"

    def line(self) -> str:
        """The signal and its sender in one line, for logs."""
        return f"{self.name} from {self.sender}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "signal": self.name,
            "number": self.number,
            "at": round(self.at, 6),
            "pid": self.pid,
            "uid": self.uid,
            "code": self.code,
            "process": self.process,
            "command": self.command,
            "sender": self.sender,
        }


def name_of(number: int) -> str:
    """Name of a signal; real-time signals have none but `SIGRTMIN`, and get that and an offset."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = getattr(signal, "SIGRTMIN", number)
        return f"SIGRTMIN+{number - first}" if number > first else f"SIG{number}"


def number_of(name: str) -> int | None:
    """Number of a signal on this system; none when the system does not have it."""
    found = getattr(signal, name, None)
    return int(found) if isinstance(found, signal.Signals) else None


def describe(
    number: int, code: int | None = None, pid: int | None = None, uid: int | None = None
) -> SignalNote:
    """The note about a signal that was just read; without a code nothing is known of its sender."""
    at = monotonic()
    name = name_of(number)
    if code is None:
        return SignalNote(number, name, at)
    word = _CODES.get(code, f"code {code}")
    process, command = _sender(pid) if word in _SENT and pid else ("", "")
    return SignalNote(number, name, at, pid, uid, word, process, command)


def _sender(pid: int) -> tuple[str, str]:
    # Gone already, or not ours to look at: what remains is the number.
    place = Path("/proc", str(pid))
    try:
        process = (place / "comm").read_bytes()
        command = (place / "cmdline").read_bytes()[: 4 * _COMMAND_CAP]
    except OSError:
        return "", ""
    return _plain(process), _plain(command)


def _plain(raw: bytes) -> str:
    """Text of one line, without anything that could forge another line of a log."""
    text = raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return "".join(c if c.isprintable() else "?" for c in text)[:_COMMAND_CAP]
