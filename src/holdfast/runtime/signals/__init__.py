"""Signals of the process: who sent which, told to whoever wants to know.

What belongs here: the mask, the handlers, the readers, the channels, QUIT, and that children are
not hit by any of it. What does not: what a signal means (`domain.lifecycle.meaning`) and what is
done about it (`runtime.lifecycle`).
"""

from holdfast.runtime.signals.channel import SignalChannel
from holdfast.runtime.signals.mask import (
    Blocked,
    block_signals,
    child_setup,
    numbers_of,
    unblocked,
)
from holdfast.runtime.signals.note import SignalNote, name_of
from holdfast.runtime.signals.quit import QuitDump, install_quit
from holdfast.runtime.signals.reception import Signals

__all__ = [
    "Blocked",
    "QuitDump",
    "SignalChannel",
    "SignalNote",
    "Signals",
    "block_signals",
    "child_setup",
    "install_quit",
    "name_of",
    "numbers_of",
    "unblocked",
]
