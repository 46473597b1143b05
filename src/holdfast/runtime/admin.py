"""Where running services listen for their operator: one Unix socket for each process.

The sockets are in `$XDG_RUNTIME_DIR/holdfast`, or in a directory of the user's own under the one
for temporary files. Only their owner can reach them: the directory has mode 0700, each socket 0600,
and a directory that somebody else made is refused.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast.runtime.owndir import UnsafeDirectory, own_directory

__all__ = [
    "UnsafeDirectory",
    "listen_here",
    "listening",
    "place",
    "remove_stale",
    "safe_place",
    "socket_of",
]

_SUFFIX: Final = ".sock"
_PATIENCE: Final = 0.5
_BACKLOG: Final = 8


def place() -> Path:
    """The directory of the sockets, whether it exists or not."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isabs(runtime) and os.path.isdir(runtime):
        return Path(runtime, "holdfast")
    return Path(tempfile.gettempdir(), f"holdfast-{os.getuid()}")


def safe_place(*, make: bool = False) -> Path | None:
    """The directory of the sockets; `None` when there is none yet and none is to be made.

    Raises:
        UnsafeDirectory: it is a link, not a directory, somebody else's, or open to others.
    """
    return own_directory(place(), make=make, variable="XDG_RUNTIME_DIR")


def socket_of(pid: int) -> Path:
    """Path of the socket of a process."""
    return place() / f"{pid}{_SUFFIX}"


def listening(path: Path) -> bool:
    """Whether somebody accepts connections on a socket."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PATIENCE)
            probe.connect(os.fspath(path))
    except (BlockingIOError, TimeoutError, PermissionError):
        return True  # somebody is there, and busy or not for us
    except OSError:
        return False
    return True


def remove_stale(directory: Path) -> None:
    """Remove the sockets that processes left behind.

    Asks the socket, not the process table: the directory may be shared by containers, where the
    same number is another process.
    """
    for path in directory.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode) and not listening(path):
                path.unlink()


def listen_here() -> socket.socket:
    """A listening socket for this process, in its place under its name.

    Raises:
        UnsafeDirectory: see `safe_place`.
        OSError: the socket cannot be made there, for example as the path is too long.
    """
    directory = safe_place(make=True)
    if directory is None:
        raise UnsafeDirectory(f"{place()}: was removed while it was made")
    remove_stale(directory)
    final = socket_of(os.getpid())
    if final.exists():
        raise FileExistsError(f"{final} is in use by a process of another container")
    # Under another name until it listens: whoever clears up would take a socket that does not yet
    # accept for one that was left behind.
    draft = final.with_suffix(".new")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            draft.unlink()
        sock.bind(os.fspath(draft))
        draft.chmod(0o600)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        draft.rename(final)
    except BaseException:
        sock.close()
        with suppress(OSError):
            draft.unlink()
        raise
    return sock
