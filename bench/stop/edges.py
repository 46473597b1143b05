"""What a client has half done at SIGTERM, and how long it holds the exit.

A request of one second is under way beside each of them but the last, so that what happens is
decided by the connection and not by the end of the process. The client goes on 0.3 s after the
signal.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench._harness import Sheet, Tell
from bench.stop.attempt import Attempts
from bench.stop.load import complete
from bench.stop.process import Running, free_port, running
from bench.stop.servers import Ask, Server, chosen, versions

__all__ = ["EDGES", "answer", "certificate", "edge", "measure"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
TIMEOUT: Final = 5.0
"""Seconds that requests under way get, where a server can be told."""
KILLED: Final = 12.0
KILLED_TLS: Final = 35.0
LATER: Final = 0.3
PATIENCE: Final = 3.0
HELLO: Final = b"GET /hello HTTP/1.1\r\nhost: bench\r\n\r\n"
UNDER_WAY: Final = b"GET /wait/1000 HTTP/1.1\r\nhost: bench\r\n\r\n"


def answer(sock: socket.socket, patience: float = PATIENCE) -> str:
    """What comes: a status (with `close` if announced), `EOF`, `reset` or `nothing`."""
    sock.settimeout(patience)
    said = b""
    try:
        while (found := complete(said)) is None:
            data = sock.recv(65536)
            if not data:
                return "EOF"
            said += data
    except TimeoutError:
        return "nothing"
    except OSError:
        return "reset"
    status, closes = found
    return f"{status}, close" if closes else str(status)


def silent(sock: socket.socket, told: Callable[[], None]) -> str:
    """No byte was sent, and none will be."""
    told()
    return {"EOF": "closed", "nothing": "left open"}.get(found := answer(sock), found)


def _in_two(first: bytes, rest: bytes) -> Callable[[socket.socket, Callable[[], None]], str]:
    def act(sock: socket.socket, told: Callable[[], None]) -> str:
        sock.sendall(first)
        told()
        time.sleep(LATER)
        try:
            sock.sendall(rest)
        except OSError:
            return "reset"
        return answer(sock)

    return act


def late(sock: socket.socket, told: Callable[[], None]) -> str:
    """A request on a connection that had an answer before."""
    sock.sendall(HELLO)
    answer(sock)
    told()
    time.sleep(LATER)
    try:
        sock.sendall(HELLO)
    except OSError:
        return "reset"
    return answer(sock)


def half_hello(sock: socket.socket, told: Callable[[], None]) -> str:
    """The first half of a ClientHello; the handshake goes on later."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = _trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        session.do_handshake()
    hello = outgoing.read()
    sock.sendall(hello[: len(hello) // 2])
    told()
    time.sleep(LATER)
    sock.settimeout(PATIENCE)
    try:
        sock.sendall(hello[len(hello) // 2 :])
        while True:
            data = sock.recv(65536)
            if not data:
                return "EOF"
            incoming.write(data)
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                continue
            return "handshake done"
    except TimeoutError:
        return "nothing"
    except OSError:
        return "reset"


def idle_tls(sock: socket.socket, told: Callable[[], None]) -> str:
    """A connection that had an answer, of a client that does not read meanwhile; all by itself."""
    with _trusting().wrap_socket(sock, server_hostname="localhost") as wrapped:
        wrapped.sendall(HELLO)
        answer(wrapped)
        told()
        return ""


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


Act = Callable[[socket.socket, Callable[[], None]], str]
EDGES: Final[dict[str, Act]] = {
    "accepted, no byte sent": silent,
    "half a header, rest later": _in_two(HELLO[:30], HELLO[30:]),
    "half a body, rest later": _in_two(
        b"POST /body HTTP/1.1\r\nhost: bench\r\ncontent-length: 20\r\n\r\n" + b"x" * 10, b"x" * 10
    ),
    "late request on an idle kept-alive connection": late,
    "half a ClientHello, rest later": half_hello,
    "idle TLS connection, its client does not read": idle_tls,
}
TLS: Final = frozenset({"half a ClientHello, rest later", list(EDGES)[-1]})


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    servers = chosen(variant.get("servers"))
    attempts = Attempts()
    with certificate() as tls:
        turns = [(name, server) for name in EDGES for server in servers]
        for index, (name, server) in enumerate(turns):
            tell(index / len(turns), f"{server.name}, {name}")
            if name not in TLS or (tls and "tls" in server.can):
                attempts(server, partial(edge, server, name, tls))
    title = "Half-done things at SIGTERM: what comes of them, and the seconds to the exit"
    columns = ["at SIGTERM", *(server.name for server in servers)]
    sheet = Sheet(title, columns, data=attempts.found)
    for name in EDGES:
        cells = {one["server"]: one["shown"] for one in attempts.found if one["edge"] == name}
        sheet.rows.append([name, *(cells.get(server.name, "-") for server in servers)])
    sheet.notes = [
        f"{versions(servers)}.",
        f"A request of 1 s is under way, and requests get {TIMEOUT:.0f} s where a server can be"
        " told; in the last row neither."
        f" After {KILLED:.0f} s ({KILLED_TLS:.0f} s with TLS) a server is killed.",
        *attempts.notes(),
    ]
    yield sheet


def edge(server: Server, name: str, tls: tuple[str, str] | None) -> dict[str, Any]:
    """One of `EDGES` on one server: what the client saw, and the seconds to the exit."""
    secure = tls if name in TLS else None
    limit = KILLED_TLS if secure else KILLED
    alone = EDGES[name] is idle_tls
    timeout = TIMEOUT if "timeout" in server.can and not alone else None
    ask = Ask(free_port(), timeout=timeout, tls=secure)
    with ExitStack() as stack:
        process = stack.enter_context(running(server, ask))
        if not alone:
            other = stack.enter_context(_connected(ask.port))
            if secure:
                other = stack.enter_context(_trusting().wrap_socket(other))
            other.sendall(UNDER_WAY)
        sock = stack.enter_context(_connected(ask.port))
        begun: list[float] = []

        def told() -> None:
            time.sleep(0.2)  # what was sent has arrived by then
            begun.append(process.signal())

        outcome, code, seconds = _acted(EDGES[name], sock, told, process, begun, limit)
    end = f"{seconds:.1f}" if code is not None else f">{limit:.0f}"
    return {
        "server": server.name,
        "edge": name,
        "outcome": outcome,
        "exit": seconds,
        "rc": code,
        "shown": f"{outcome}, {end}" if outcome else end,
    }


def _acted(
    act: Act,
    sock: socket.socket,
    told: Callable[[], None],
    process: Running,
    begun: list[float],
    limit: float,
) -> tuple[str, int | None, float]:
    if act is idle_tls:
        # The connection has to stay open, and unread, until the process is gone.
        held: list[int | None] = []

        def told_and_wait() -> None:
            told()
            held.append(process.wait(limit))

        outcome = act(sock, told_and_wait)
        code = held[0]
    else:
        outcome = act(sock, told)
        code = process.wait(max(0.0, begun[0] + limit - time.monotonic()))
    return outcome, code, (process.ended or time.monotonic()) - begun[0]


@contextmanager
def _connected(port: int) -> Generator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        yield sock


@contextmanager
def certificate() -> Generator[tuple[str, str] | None]:
    """A certificate for localhost and its key; None without `openssl`."""
    with tempfile.TemporaryDirectory(prefix="bench-stop-") as name:
        paths = str(Path(name) / "cert.pem"), str(Path(name) / "key.pem")
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-out", paths[0], "-keyout", paths[1]]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.CalledProcessError):
            yield None
        else:
            yield paths
