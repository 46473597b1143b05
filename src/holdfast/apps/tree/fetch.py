"""Ask running services for their tree."""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from holdfast.domain.errors import HoldfastError
from holdfast.runtime.admin import UnsafeDirectory, safe_place, socket_of

__all__ = ["Service", "TreeError", "at_url", "local", "of_pid"]

_LIMIT: Final = 3.0
_LARGEST: Final = 64 * 1024 * 1024
_PAGE: Final = "/debug/holdfast/tree.json"


class TreeError(HoldfastError):
    """There is no tree to show. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Service:
    """One process that answered.

    Attributes:
        about: `pid`, `parent`, `service`, `target`, `url`, `mode`; or `pid` and `problem`; or `url`
            alone, where it was asked there.
        tree: `roots` with their scopes, `counts` of scopes, `requests` by what became of them.
    """

    about: dict[str, Any]
    tree: dict[str, Any]


class _Local(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_LIMIT)
        self.sock.connect(os.fspath(self._path))


def _get(connection: http.client.HTTPConnection, page: str) -> tuple[int, bytes]:
    try:
        connection.request("GET", page, headers={"accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(_LARGEST)
    finally:
        connection.close()


def _decoded(body: bytes) -> dict[str, Any]:
    found: object = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return cast("dict[str, Any]", found)


def _ask(path: Path) -> Service:
    return Service(
        _decoded(_get(_Local(path), "/")[1]), _decoded(_get(_Local(path), "/tree.json")[1])
    )


def local() -> list[Service]:
    """All services of this user on this machine, by process number.

    Raises:
        TreeError: the directory of their sockets is not safe to use.
    """
    try:
        directory = safe_place()
    except UnsafeDirectory as error:
        raise TreeError(str(error)) from None
    found: list[Service] = []
    for path in sorted(directory.glob("*.sock")) if directory is not None else ():
        try:
            found.append(_ask(path))
        except TimeoutError:
            found.append(
                Service({"pid": int(path.stem), "problem": f"no answer in {_LIMIT:g} s"}, {})
            )
        except (OSError, ValueError, http.client.HTTPException):
            continue  # it was left behind, or ended just now
    return sorted(found, key=lambda service: int(service.about.get("pid", 0)))


def of_pid(pid: int) -> list[Service]:
    """The service that is this process, or the workers that it supervises.

    Raises:
        TreeError: there is none.
    """
    path = socket_of(pid)
    try:
        if safe_place() is not None:
            return [_ask(path)]
    except UnsafeDirectory as error:
        raise TreeError(str(error)) from None
    except (FileNotFoundError, ConnectionRefusedError):
        pass  # no socket of its own: it may be the supervisor of some that have one
    except PermissionError:
        raise TreeError(f"process {pid} belongs to another user; {_as_owner(pid)}") from None
    except TimeoutError:
        raise TreeError(
            f"process {pid} did not answer within {_LIMIT:g} s: its event loop is blocked, "
            f"or it is stopped; py-spy dump --pid {pid} shows where"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TreeError(f"process {pid} did not answer sensibly: {error}") from None
    workers = [service for service in local() if service.about.get("parent") == pid]
    if workers:
        return workers
    raise TreeError(_why_none(pid))


def _why_none(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return f"there is no process {pid}{_others()}"
    except PermissionError:
        return f"process {pid} belongs to another user; {_as_owner(pid)}"
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.getuid():
            return f"process {pid} belongs to another user; {_as_owner(pid)}"
    except OSError:
        pass  # no /proc here, or it ended just now: the reason below fits as well
    return (
        f"process {pid} is not a holdfast service, or was started with --no-admin, "
        f"or has another XDG_RUNTIME_DIR than this shell{_others()}"
    )


def _as_owner(pid: int) -> str:
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return "run this as that user"
    return f"run: sudo -u '#{owner}' holdfast tree --pid {pid}"


def _others() -> str:
    pids = [str(service.about["pid"]) for service in local() if "pid" in service.about]
    return f"; services run here as {', '.join(pids)}" if pids else "; no service runs here"


def at_url(url: str) -> list[Service]:
    """The service behind a URL.

    Raises:
        TreeError: it does not answer, or does not show its tree.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        raise TreeError(f"{url}: has no valid port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TreeError(f"{url}: is not a URL such as http://127.0.0.1:8000")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, port, timeout=_LIMIT)
    page = parts.path.rstrip("/") + _PAGE
    try:
        status, body = _get(connection, page)
    except TimeoutError:
        raise TreeError(f"{url}: did not answer within {_LIMIT:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise TreeError(f"{url}: cannot be asked: {reason}") from None
    if status == http.client.OK:
        return [Service({"url": url}, _tree_in(body, url))]
    raise TreeError(f"{url}{_PAGE}: {_why_refused(status)}")


def _tree_in(body: bytes, url: str) -> dict[str, Any]:
    try:
        tree = _decoded(body)
    except ValueError:
        tree = {}
    if not isinstance(tree.get("roots"), list):
        raise TreeError(f"{url}{_PAGE}: what answered is not a holdfast service")
    return tree


def _why_refused(status: int) -> str:
    if status == http.client.FORBIDDEN:
        return "shown to clients on the same machine only; ask there, or use --pid there"
    if status == http.client.NOT_FOUND:
        return "not there; the service shows it when its policy file says tree = true in [debug]"
    return f"answered with status {status}"
