"""Runs a Python module whose listening socket may share its port with that of another process.

    python -m bench.stop.peers.reuse MODULE ARGUMENTS

Few servers have an option for `SO_REUSEPORT`. So it is set here, for all of them alike, on every
TCP socket right before it is bound.
"""

from __future__ import annotations

import runpy
import socket
import sys
from typing import Any

__all__ = ["main"]


def main() -> None:
    bind = socket.socket.bind

    def reusable(self: socket.socket, address: Any, /) -> None:
        if self.family != socket.AF_UNIX:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bind(self, address)

    setattr(socket.socket, "bind", reusable)  # noqa: B010 - on purpose, and mypy minds otherwise
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
