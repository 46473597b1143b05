"""The listening socket, bound before the application is loaded: what is wrong shows at once."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast.apps.serve.problem import ServeError
from holdfast.runtime.admin import listening

__all__ = ["bind", "remove_uds", "url_of", "why_not"]

_LONGEST_UDS: Final = 107
_LISTEN: Final = "0A"


def bind(host: str, port: int, uds: str) -> socket.socket:
    """A bound socket, which does not listen yet: until the application is ready nobody is let in.

    Raises:
        ServeError: it cannot be bound.
    """
    sock = _bind_uds(uds) if uds else _bind_tcp(host, port)
    sock.set_inheritable(True)
    return sock


def url_of(sock: socket.socket, *, tls: bool = False) -> str:
    """Where a socket listens, for people."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ServeError(
            f"--host {host}: {reason}; use an address of this machine, "
            "127.0.0.1 for this machine only, 0.0.0.0 for all"
        ) from None
    family, kind, protocol, _, address = min(found, key=lambda item: item[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ServeError(why_not(error, host, port)) from None
    return sock


def why_not(error: OSError, host: str, port: int) -> str:
    """What to tell about a TCP port that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        holder = _holder(port)
        by = f" by {holder}" if holder else " by another process"
        return f"port {port} on {host} is in use{by}; give another one with --port, or 0 for any"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is not for ordinary users; give one from 1024 upwards with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: is not an address of this machine; 0.0.0.0 stands for all of them"
    return f"cannot listen on {host}:{port}: {error.strerror}"


def _holder(port: int) -> str:
    """Who listens on a TCP port, as far as this user may see; empty when unknown. Linux only."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return ""


def _bind_uds(path: str) -> socket.socket:
    what = f"--uds {path}"
    if len(os.fsencode(path)) > _LONGEST_UDS:
        raise ServeError(f"{what}: longer than {_LONGEST_UDS} bytes, the most a socket can have")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise ServeError(f"{what}: there is no directory {os.path.dirname(path)}; make it first")
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        mode = 0
    if mode and not stat.S_ISSOCK(mode):
        raise ServeError(f"{what}: exists and is not a socket; name another path")
    if mode and listening(Path(path)):
        raise ServeError(f"{what}: another process listens there; stop it, or name another path")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if mode:
            os.unlink(path)
        sock.bind(path)
        # As uvicorn has it: a proxy of another user must reach it. The directory is what protects.
        os.chmod(path, 0o666)
    except OSError as error:
        sock.close()
        raise ServeError(f"{what}: {error.strerror}") from None
    return sock


def remove_uds(path: str) -> None:
    """Remove the socket that was bound."""
    with suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
