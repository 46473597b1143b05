"""The end of a process that does not end by itself.

When everything was stopped that can be stopped, the interpreter still waits for its threads: a
handler that runs in one and does not return keeps the process for ever, and Python cannot stop it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from typing import Final

from holdfast.domain.instant import Duration, format_duration

__all__ = ["end_within"]

_log: Final = logging.getLogger("holdfast.lifecycle")


def end_within(seconds: Duration, code: int) -> None:
    """End the process with `code` in so many seconds, should it be there then.

    To be called as the last thing; what holds it up is named in the log.
    """
    timer = threading.Timer(seconds, _end, (seconds, code))
    timer.daemon = True
    timer.name = "holdfast last resort"
    timer.start()


def _end(seconds: Duration, code: int) -> None:
    mine = threading.current_thread()
    names = [t.name for t in threading.enumerate() if not t.daemon and t is not mine]
    _log.warning(
        "the process is still there %s after everything was stopped; it ends now, and with it the "
        "threads %s",
        format_duration(seconds),
        ", ".join(names),
    )
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)
