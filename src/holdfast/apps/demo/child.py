"""What a process of the demo does first: see to it that it never outlives the demo.

    python -m holdfast.apps.demo.child PARENT serve edge:app --port 8000

Two means, as the demo may be killed without a chance to clear up: the kernel is asked to kill this
process when its parent dies (Linux), and a thread waits for the end of standard input, a pipe whose
other end only the parent has. Then it is the command `holdfast`, as anybody would type it.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from typing import Final

__all__ = ["main"]

_SET_PARENT_DEATH_SIGNAL: Final = 1


def main() -> None:
    """Run the command that the arguments say, bound to the life of the parent."""
    parent = int(sys.argv[1])
    _die_with(parent)
    sys.argv = ["holdfast", *sys.argv[2:]]
    runpy.run_module("holdfast.apps.cli", run_name="__main__", alter_sys=True)


def _die_with(parent: int) -> None:
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it died before we could ask
    threading.Thread(target=_watch, name="parent watch", daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
