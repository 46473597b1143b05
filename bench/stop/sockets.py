"""Twenty open WebSockets at SIGTERM, and one request that never ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from bench._harness import Sheet, Tell
from bench.stop.attempt import Attempts
from bench.stop.edges import answer
from bench.stop.process import Running, free_port, running
from bench.stop.servers import Ask, Server, chosen, versions

__all__ = ["endless", "measure", "websockets_at_stop"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
COUNT: Final = 20
TIMEOUT: Final = 3.0
KILLED: Final = 15.0


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    servers = chosen(variant.get("servers"))
    attempts = Attempts()
    for index, server in enumerate(servers):
        tell(index / len(servers), f"{server.name}, WebSockets")
        if "ws" in server.can:
            attempts(server, partial(websockets_at_stop, server))
        for timeout in (TIMEOUT,) if quick else (TIMEOUT, None):
            tell((index + 0.5) / len(servers), f"{server.name}, a request that never ends")
            attempts(server, partial(endless, server, timeout))
    for what, shown in (("ws", _sockets), ("hang", _hangs)):
        sheet = shown(servers, [one for one in attempts.found if one["what"] == what])
        sheet.notes += attempts.notes()
        yield sheet


def websockets_at_stop(server: Server, count: int = COUNT) -> dict[str, Any]:
    """Close codes that the clients see, the seconds until then, and the exit."""
    ask = Ask(free_port(), timeout=TIMEOUT)
    with running(server, ask) as process:
        codes, after, told = asyncio.run(_all_closed(process, count))
        code = process.wait(max(0.0, told + KILLED - time.monotonic()))
        return {
            "what": "ws",
            "server": server.name,
            "codes": dict(Counter(codes)),
            "after": max(after),
            "exit": (process.ended or time.monotonic()) - told,
            "rc": code,
            "seen": dict(Counter(w for _, w in process.notes() if w.startswith("disconnect"))),
            "hook": process.noted("shutdown"),
        }


async def _all_closed(process: Running, count: int) -> tuple[list[int], list[float], float]:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import ConnectionClosed

    async def until_closed(client: ClientConnection) -> tuple[int, float]:
        try:
            async with asyncio.timeout(KILLED):
                await client.recv()
        except ConnectionClosed as error:
            return (error.rcvd.code if error.rcvd else 1006), time.monotonic()
        except TimeoutError:
            pass
        return 0, time.monotonic()

    address = f"ws://127.0.0.1:{process.port}/ws"
    clients = [await connect(address, close_timeout=1, proxy=None) for _ in range(count)]
    for client in clients:
        await client.send("hello")
        await client.recv()
    told = process.signal()
    ends = await asyncio.gather(*(until_closed(client) for client in clients))
    for client in clients:
        client.transport.abort()
    return [code for code, _ in ends], [at - told for _, at in ends], told


def endless(server: Server, timeout: float | None) -> dict[str, Any]:
    """A request that never ends, and has no answer yet.

    Ours has no lame duck then: what it does not use would be given to the request.
    """
    ask = Ask(free_port(), timeout=timeout, stop={} if timeout is None else {"lame_duck": 0})
    with (
        running(server, ask) as process,
        socket.create_connection(("127.0.0.1", ask.port)) as sock,
    ):
        sock.sendall(b"GET /never HTTP/1.1\r\nhost: bench\r\n\r\n")
        time.sleep(0.2)
        told = process.signal()
        outcome = answer(sock, KILLED)
        code = process.wait(max(0.0, told + KILLED - time.monotonic()))
        return {
            "what": "hang",
            "server": server.name,
            "timeout": timeout,
            "outcome": outcome,
            "exit": (process.ended or time.monotonic()) - told,
            "rc": code,
            "cancelled": process.noted("cancelled"),
            "hook": process.noted("shutdown"),
        }


def _sockets(servers: list[Server], found: list[dict[str, Any]]) -> Sheet:
    columns = ["server", "close code", "after, s", "application saw", "exit s", "rc", "hook ran"]
    title = f"{COUNT} open WebSockets at SIGTERM, {TIMEOUT:.0f} s for what is under way"
    sheet = Sheet(title, columns, data=found, notes=[f"{versions(servers)}."])
    for one in found:
        codes = ", ".join(f"{_close(code)} x {n}" for code, n in one["codes"].items())
        seen = ", ".join(f"{code.split()[1]} x {n}" for code, n in one["seen"].items())
        sheet.rows.append(
            [one["server"], codes, f"{one['after']:.1f}", seen or "nothing", _exit(one),
             str(one["rc"]), "yes" if one["hook"] else "**no**"]
        )  # fmt: skip
    return sheet


def _hangs(servers: list[Server], found: list[dict[str, Any]]) -> Sheet:
    columns = ["server", "time-out", "client sees", "handler cancelled", "exit s", "rc", "hook ran"]
    sheet = Sheet("One request that never ends, at SIGTERM", columns, data=found)
    for one in found:
        timeout = "default" if one["timeout"] is None else f"{one['timeout']:.0f} s"
        sheet.rows.append(
            [one["server"], timeout, one["outcome"], "yes" if one["cancelled"] else "**no**",
             _exit(one), str(one["rc"]), "yes" if one["hook"] else "**no**"]
        )  # fmt: skip
    sheet.notes = [f"{versions(servers)}.", f"Killed after {KILLED:.0f} s."]
    return sheet


def _exit(one: dict[str, Any]) -> str:
    return f">{KILLED:.0f}" if one["rc"] is None else f"{one['exit']:.1f}"


def _close(code: int) -> str:
    return {0: "still open", 1006: "none (1006)"}.get(code, str(code))
