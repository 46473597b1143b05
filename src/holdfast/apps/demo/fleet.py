"""The four services as processes. Whatever happens, none of them outlives the demo."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from holdfast._version import __file__ as _inside
from holdfast.apps.demo.http import LOCAL, ask_json
from holdfast.apps.demo.trouble import DemoError
from holdfast.domain.instant import Duration
from holdfast.runtime.clock import monotonic

__all__ = ["SERVICES", "Fleet", "check_installation", "shop"]

SERVICES: Final = ("edge", "orders", "payments", "bank")
"""The hops, from the user on."""

_READY_WITHIN: Final[Duration] = 30.0
_COMMAND_WITHIN: Final[Duration] = 5.0
_STEP: Final[Duration] = 0.05
_STOP_STEPS: Final = 20
_LAST_LINES: Final = 12
_PACKAGE: Final = Path(_inside).parent


def shop() -> Path:
    """The directory of the services: beside the package when installed, else of the checkout.

    Raises:
        DemoError: it is nowhere.
    """
    places = (_PACKAGE / "_examples" / "shop", _PACKAGE.parent.parent / "examples" / "shop")
    for place in places:
        if (place / "edge.py").is_file():
            return place
    raise DemoError(f"the services of the demo are missing; they should be in {places[0]}")


def check_installation() -> None:
    """See whether everything is there.

    Raises:
        DemoError: something is not installed.
    """
    wanted = {name: find_spec(name) for name in ("uvicorn", "starlette", "typer", "rich")}
    wanted["httpx2"] = find_spec("httpx2") or find_spec("httpx")
    missing = [name for name, found in wanted.items() if found is None]
    if missing:
        raise DemoError(f"needs {', '.join(missing)}; run: pip install 'holdfast[demo]'")


@dataclass(slots=True)
class _Child:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def last_lines(self) -> str:
        # By pread: the process writes at the same offset, and moving it would spoil that.
        size = os.fstat(self.log.fileno()).st_size
        text = os.pread(self.log.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")
        lines = text.splitlines()[-_LAST_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"


class Fleet:
    """The services, between `async with` and its end.

    Args:
        carriers: whether Holdfast is at work in them.
    """

    def __init__(self, *, carriers: bool) -> None:
        self.carriers = carriers
        self.shop = shop()
        self._children: dict[str, _Child] = {}

    def port(self, service: str) -> int:
        """Where a service listens."""
        return self._children[service].port

    async def __aenter__(self) -> Fleet:
        try:
            with _free_ports(len(SERVICES)) as ports:
                for name, port in zip(SERVICES, ports, strict=True):
                    self._start(name, port, dict(zip(SERVICES, ports, strict=True)))
                await self._ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    def check(self) -> None:
        """See whether all are alive.

        Raises:
            DemoError: one has ended; with what it said last.
        """
        for child in self._children.values():
            code = child.process.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                said = child.last_lines()
                raise DemoError(f"the service {child.name} {how}; it said last:\n{said}")

    async def tree(self, service: str) -> list[str]:
        """What `holdfast tree` prints about a service now; empty when it fails."""
        words = _command("tree", "--pid", str(self._children[service].process.pid))
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment({}),
            process_group=0,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(_COMMAND_WITHIN):
                text = await process.stdout.read()
                code = await process.wait()
        except TimeoutError:
            return []
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return text.decode(errors="replace").splitlines() if code == 0 else []

    # -- starting --------------------------------------------------------------------------------

    def _start(self, name: str, port: int, ports: dict[str, int]) -> None:
        config = self.shop / ("holdfast.toml" if self.carriers else "holdfast-off.toml")
        words = _command(
            "serve", f"{name}:app", "--host", LOCAL, "--port", str(port), "--service", name,
            "--config", str(config), "--workers", "1", "--no-access-log",
        )  # fmt: skip
        log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,  # the child takes its end for our death
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.shop,
                env=self._environment(ports),
                process_group=0,  # so that Ctrl-C reaches only us, who stop them in order
            )
        except OSError as error:
            log.close()
            raise DemoError(f"the service {name} cannot be started: {error}") from None
        self._children[name] = _Child(name, port, process, log)

    def _environment(self, ports: dict[str, int]) -> dict[str, str]:
        found = dict(os.environ)
        found["SHOP_CARRIERS"] = "on" if self.carriers else "off"
        for name, port in ports.items():
            found[f"SHOP_{name.upper()}"] = f"http://{LOCAL}:{port}"
        found["NO_PROXY"] = found["no_proxy"] = LOCAL
        if _PACKAGE.parent.name == "src":
            known = found.get("PYTHONPATH")
            found["PYTHONPATH"] = os.pathsep.join(
                [str(_PACKAGE.parent), *([known] if known else [])]
            )
        return found

    async def _ready(self) -> None:
        limit = monotonic() + _READY_WITHIN
        for child in self._children.values():
            while await ask_json(child.port, "/stats", _STEP * 10) is None:
                self.check()
                if monotonic() > limit:
                    raise DemoError(
                        f"the service {child.name} does not answer within {_READY_WITHIN:g} s; "
                        f"it said last:\n{child.last_lines()}"
                    )
                await asyncio.sleep(_STEP)

    # -- stopping --------------------------------------------------------------------------------

    async def _stop(self) -> None:
        processes = [child.process for child in self._children.values()]
        try:
            for process in processes:
                process.terminate()
            for _ in range(_STOP_STEPS):
                if all(process.poll() is not None for process in processes):
                    break
                await asyncio.sleep(_STEP)
        finally:
            for child in self._children.values():
                if child.process.poll() is None:
                    child.process.kill()
                child.process.wait()
                if child.process.stdin is not None:
                    child.process.stdin.close()
                child.log.close()


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "holdfast.apps.demo.child", str(os.getpid()), *words]


@contextmanager
def _free_ports(count: int) -> Generator[list[int]]:
    """Free ports, kept free of others in the block.

    A socket that is bound and does not listen keeps a port from being given to anybody who asks for
    any, while a server that asks for this very one (and reuses addresses, as servers do) gets it.
    """
    with ExitStack() as stack:
        ports: list[int] = []
        for _ in range(count):
            sock = stack.enter_context(closing(socket.socket()))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((LOCAL, 0))
            except OSError as error:
                raise DemoError(f"no free port on {LOCAL}: {error.strerror}") from None
            ports.append(int(sock.getsockname()[1]))
        yield ports
