"""uvicorn's reloader: a process that serves, started again when a Python file changes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from uvicorn.config import Config
from uvicorn.supervisors import ChangeReload

__all__ = ["serve_reloading"]


def serve_reloading(
    target: Callable[[list[socket.socket] | None], None], sock: socket.socket, directory: Path
) -> None:
    """Run `target` in a process of its own, again and again, until told to stop.

    Args:
        target: serves on the sockets that it is given; must survive pickling.
        sock: bound.
        directory: what is watched, with everything below it.
    """
    config = Config("", reload=True, reload_dirs=[str(directory)], log_config=None)
    ChangeReload(config, target, [sock]).run()
