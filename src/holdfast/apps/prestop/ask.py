"""Find the service, tell it, and wait until its lame duck is over."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import Duration, format_duration
from holdfast.runtime.admin import UnsafeDirectory, safe_place
from holdfast.runtime.admin_call import call
from holdfast.runtime.clock import monotonic

__all__ = ["PrestopError", "prestop"]

_PAGE: Final = "/prestop"
_EVERY: Final = 0.1
_FIRST: Final = 1
_ABSENT: Final = (FileNotFoundError, ConnectionError)


class PrestopError(HoldfastError):
    """The service cannot be told. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class _Process:
    """One process that listens for its operator."""

    pid: int
    path: Path
    about: dict[str, Any]

    @property
    def leader(self) -> int:
        """The process that is sent the signals: the supervisor of a worker, else itself."""
        return int(self.about.get("parent") or self.pid)

    @property
    def name(self) -> str:
        said = str(self.about.get("service") or self.about.get("target") or "service")
        return said if said.isprintable() else ascii(said)


def prestop(*, pid: int | None, wait: Duration) -> int:
    """Tell a service, and wait until its lame duck is over or the time is; the exit code.

    Asking again changes nothing and tells what is left, so that is how the end is seen.

    Args:
        pid: process of the service, or the supervisor of its workers; `None` for the only service
            of this user here, and where there are several, for that of process 1.
        wait: seconds to wait at most.

    Raises:
        PrestopError: there is no such service, or it does not know how to.
    """
    processes = _choose(_listening(), pid)
    if not processes:
        print("holdfast prestop: no service of this user runs here", file=sys.stderr)
        return 1
    begun = monotonic()
    waiting = _tell(processes, wait)
    pause = threading.Event()
    while waiting and (left := begun + wait - monotonic()) > 0:
        pause.wait(min(_EVERY, left))
        waiting = [process for process in waiting if (_ask(process, wait) or 0.0) > 0]
    _report(processes, waiting, monotonic() - begun)
    return 0


def _listening() -> list[_Process]:
    try:
        directory = safe_place()
    except UnsafeDirectory as error:
        raise PrestopError(str(error)) from None
    found: list[_Process] = []
    for path in sorted(directory.glob("*.sock")) if directory is not None else ():
        if not (path.stem.isascii() and path.stem.isdigit()):
            continue
        try:
            about = _decoded(call(path, "/")[1])
        except TimeoutError:
            about = {}  # it is there, and busy; if it is the one, telling it will say so
        except (OSError, ValueError, http.client.HTTPException):
            continue  # it was left behind, or ended just now
        found.append(_Process(int(path.stem), path, about))
    return found


def _choose(processes: Sequence[_Process], pid: int | None) -> list[_Process]:
    leaders = sorted({process.leader for process in processes})
    if pid is None:
        if len(leaders) > 1 and _FIRST not in leaders:
            named = ", ".join(f"{p.leader} ({p.name})" for p in _one_each(processes))
            raise PrestopError(f"several services run here, so name one with --pid: {named}")
        pid = _FIRST if _FIRST in leaders else next(iter(leaders), None)
        return [process for process in processes if process.leader == pid]
    found = [process for process in processes if pid in (process.pid, process.leader)]
    if found:
        return found
    others = f"; services run here as {', '.join(map(str, leaders))}" if leaders else ""
    raise PrestopError(
        f"process {pid} is not a holdfast service, was started with --no-admin, or has another "
        f"XDG_RUNTIME_DIR than this command{others}"
    )


def _one_each(processes: Iterable[_Process]) -> list[_Process]:
    return list({process.leader: process for process in processes}.values())


def _tell(processes: Sequence[_Process], wait: Duration) -> list[_Process]:
    """Those whose lame duck is not over yet."""
    waiting: list[_Process] = []
    knows = False
    for process in processes:
        left = _ask(process, wait)
        if left is None:
            continue
        knows = True
        if left > 0:
            waiting.append(process)
    if not knows:
        raise PrestopError(
            f"process {processes[0].pid} does not know {_PAGE}: it runs another version of "
            "holdfast than this command; let both come from one image"
        )
    return waiting


def _ask(process: _Process, wait: Duration) -> Duration | None:
    """Seconds that are left of its lame duck at most; `None` when it does not know of one."""
    try:
        status, body = call(process.path, _PAGE, method="POST", limit=max(wait, _EVERY))
        answer = _decoded(body) if status == http.client.OK else {}
    except _ABSENT:
        return 0.0  # it has ended: nobody is waited for
    except TimeoutError:
        raise PrestopError(
            f"process {process.pid} did not answer within {format_duration(max(wait, _EVERY))}: "
            "its event loop is blocked, or it is stopped"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise PrestopError(f"process {process.pid} did not answer sensibly: {error}") from None
    if status in (http.client.NOT_FOUND, http.client.METHOD_NOT_ALLOWED):
        return None
    left = answer.get("lame_duck_s")
    if isinstance(left, bool) or not isinstance(left, int | float):
        raise PrestopError(
            f"process {process.pid} did not answer sensibly: status {status}, "
            f"{body[:80].decode('utf-8', 'replace')!r}"
        )
    return float(left)


def _report(processes: Sequence[_Process], waiting: Sequence[_Process], took: Duration) -> None:
    last = {process.pid for process in waiting}
    for process in processes:
        end = "is not over yet" if process.pid in last else "is over"
        print(
            f"{process.name} (process {process.pid}) is unready, its lame duck {end} after "
            f"{format_duration(took)}"
        )


def _decoded(body: bytes) -> dict[str, Any]:
    found: object = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return cast("dict[str, Any]", found)
