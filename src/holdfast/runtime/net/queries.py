"""Messages to name servers, and their answers: what the wire asks for, and nothing of what it says.

One daemon thread sends and receives for everybody, so that a thousand questions to a dead server
cost a thousand sockets for a few seconds and no thread. It comes with the first question and goes
when there was none for a while.

Each question goes from a port of its own, which is half of what makes answers hard to forge
(RFC 5452), to the first server; to the next one when that says that it cannot tell, or says nothing
for a while. An answer that comes late is taken all the same. One that is cut is asked for again
over TCP (RFC 7766).
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.lookups import after_fork

__all__ = ["Queries", "Question", "Server", "Verdict", "rounds"]

_IDLE: Final[Duration] = 10.0
_FIRST_WAIT: Final[Duration] = 0.5
_LARGEST: Final = 65_535
_MOST: Final = 2_000
"""Questions at the same time, each with a socket or more: beyond that they are refused."""


class Server(NamedTuple):
    """A name server: a literal address and a port."""

    host: str
    port: int = 53

    def __str__(self) -> str:
        if self.port == 53:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Verdict(Enum):
    """What a message that came is to its question."""

    ANSWER = "answer"
    """This is it."""
    CUT = "cut"
    """The first part of it; the whole comes over TCP."""
    REFUSED = "refused"
    """The server cannot tell."""
    FOREIGN = "foreign"
    """Not an answer to this question."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask.

    Attributes:
        message: to send.
        judge: what a message that came is to it; called in the thread of the queries.
        plan: which servers to ask, in order, and how many seconds to wait before the next one is
            asked too; see `rounds`.
        done: is called once: with the answer, or with why there is none.
    """

    message: bytes
    judge: Callable[[bytes], Verdict]
    plan: Sequence[tuple[Server, Duration]]
    done: Callable[[bytes | str], None]


def rounds(
    servers: Sequence[Server], timeout: Duration, attempts: int
) -> Iterator[tuple[Server, Duration]]:
    """The plan of resolv.conf, and a quick round before: a lost packet costs half a second."""
    for wait in (min(_FIRST_WAIT, timeout), *(timeout for _ in range(attempts))):
        for server in servers:
            yield server, wait


class Queries:
    """The thread that asks.

    Args:
        idle: seconds that the thread stays without work.
    """

    def __init__(self, idle: Duration = _IDLE) -> None:
        self._idle_for = idle
        self._lock = threading.Lock()
        self._desk: _Desk | None = None
        after_fork(self._reset)

    def _reset(self) -> None:
        # The child has copies of the sockets, and no thread that reads them.
        self._lock = threading.Lock()
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.release()

    def ask(self, question: Question) -> None:
        """Ask; from any thread."""
        with self._lock:
            desk = self._desk
            if desk is None or not desk.take(question):
                self._desk = desk = _Desk(self._idle_for)
                desk.take(question)
                threading.Thread(target=desk.run, name="holdfast dns", daemon=True).start()

    def close(self) -> None:
        """Let the thread go as soon as it has no work."""
        with self._lock:
            if self._desk is not None:
                self._desk.leave()


class _Exchange:
    """One question under way, with every socket on which its answer may come."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.plan = deque(question.plan)
        self.sockets: dict[socket.socket, tuple[Server, bytearray | None]] = {}
        self.due: Instant = NEVER
        self.said: dict[Server, str] = {}
        self.over = False

    def why(self) -> str:
        return ", ".join(f"{server}: {said}" for server, said in self.said.items())


class _Desk:
    """What one life of the thread has: its selector, its sockets, its questions."""

    def __init__(self, idle: Duration) -> None:
        self._idle_for = idle
        self._lock = threading.Lock()
        self._new: deque[Question] = deque()
        self._gone = False
        self._leave = False
        self._open: set[_Exchange] = set()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)

    # -- from any thread -------------------------------------------------------------------------

    def take(self, question: Question) -> bool:
        """Take a question on; not when the thread is about to end."""
        with self._lock:
            if self._gone:
                return False
            self._leave = False
            self._new.append(question)
            self._ring()
        return True

    def leave(self) -> None:
        """End when there is no work, without waiting for more."""
        with self._lock:
            if not self._gone:
                self._leave = True
                self._ring()

    def _ring(self) -> None:
        try:
            self._bell.send(b"\0")
        except BlockingIOError:
            return  # full: it has been rung often enough

    def release(self) -> None:
        """Close everything. No call may be under way in the thread."""
        for exchange in self._open:
            for sock in exchange.sockets:
                sock.close()
        self._selector.close()
        self._bell.close()
        self._ear.close()

    # -- in the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        """Ask and hear until there is nothing to do."""
        idle_since = monotonic()
        while True:
            due = min((e.due for e in self._open), default=idle_since + self._idle_for)
            for key, _ in self._selector.select(max(0.0, due - monotonic())):
                if key.fileobj is self._ear:
                    self._ear.recv(_LARGEST)
                elif not key.data.over:
                    self._ready(key.data, key.fileobj)  # type: ignore[arg-type]
            self._begin_new()
            now = monotonic()
            for exchange in [e for e in self._open if e.due <= now]:
                self._next(exchange)
            if self._open:
                idle_since = now
            elif self._ended(now >= idle_since + self._idle_for):
                return

    def _ended(self, tired: bool) -> bool:
        with self._lock:
            if self._new or not (tired or self._leave):
                return False
            self._gone = True
        self.release()
        return True

    def _begin_new(self) -> None:
        while self._new:
            exchange = _Exchange(self._new.popleft())
            if len(self._open) >= _MOST:
                _tell(exchange.question.done, f"{_MOST} questions are under way already")
                continue
            self._open.add(exchange)
            self._next(exchange)

    def _next(self, exchange: _Exchange) -> None:
        """Ask the next server too; without one, the question is over."""
        while exchange.plan:
            server, wait = exchange.plan.popleft()
            sock = self._send(exchange, server)
            if sock is not None:
                exchange.sockets[sock] = (server, None)
                exchange.due = monotonic() + wait
                return
        self._over(exchange, exchange.why())

    def _send(self, exchange: _Exchange, server: Server) -> socket.socket | None:
        exchange.said.setdefault(server, "no answer")
        try:
            sock = socket.socket(_family(server), socket.SOCK_DGRAM)
        except OSError as exc:
            exchange.said[server] = str(exc)
            return None
        try:
            sock.setblocking(False)
            # Connected, so that only this server's answers come in, and its refusals as errors.
            sock.connect(_sockaddr(server))
            sock.send(exchange.question.message)
            self._selector.register(sock, selectors.EVENT_READ, exchange)
        except OSError as exc:
            sock.close()
            exchange.said[server] = str(exc)
            return None
        return sock

    def _ready(self, exchange: _Exchange, sock: socket.socket) -> None:
        server, buffer = exchange.sockets[sock]
        try:
            if buffer is None:
                message: bytes | None = sock.recv(_LARGEST)
            else:
                message = _received(sock, buffer, exchange.question.message)
        except BlockingIOError:
            return
        except OSError as exc:
            self._drop(exchange, sock, str(exc))
            return
        if message is None:
            self._selector.modify(sock, selectors.EVENT_READ, exchange)
            return
        verdict = exchange.question.judge(message)
        if verdict is Verdict.ANSWER:
            self._over(exchange, message)
        elif verdict is Verdict.CUT and buffer is None:
            self._over_tcp(exchange, sock, server)
        elif verdict is Verdict.FOREIGN and buffer is None:
            return
        else:
            self._drop(exchange, sock, "cannot tell")

    def _over_tcp(self, exchange: _Exchange, cut: socket.socket, server: Server) -> None:
        self._close(exchange, cut)
        try:
            sock = socket.socket(_family(server), socket.SOCK_STREAM)
        except OSError as exc:
            self._failed(exchange, server, str(exc))
            return
        exchange.sockets[sock] = (server, bytearray())
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_WRITE, exchange)
        try:
            sock.connect(_sockaddr(server))
        except BlockingIOError:
            return  # the selector says when
        except OSError as exc:
            self._drop(exchange, sock, str(exc))

    def _drop(self, exchange: _Exchange, sock: socket.socket, said: str) -> None:
        server, _ = exchange.sockets[sock]
        self._close(exchange, sock)
        self._failed(exchange, server, said)

    def _failed(self, exchange: _Exchange, server: Server, said: str) -> None:
        """A server has had its say: it is not asked again, and the next one is asked at once."""
        exchange.said[server] = said
        exchange.plan = deque(item for item in exchange.plan if item[0] != server)
        if exchange.plan or not exchange.sockets:
            self._next(exchange)

    def _close(self, exchange: _Exchange, sock: socket.socket) -> None:
        del exchange.sockets[sock]
        self._selector.unregister(sock)
        sock.close()

    def _over(self, exchange: _Exchange, result: bytes | str) -> None:
        exchange.over = True
        self._open.discard(exchange)
        for sock in tuple(exchange.sockets):
            self._close(exchange, sock)
        _tell(exchange.question.done, result)


def _tell(done: Callable[[bytes | str], None], result: bytes | str) -> None:
    try:
        done(result)
    except Exception as exc:
        # The questions of others go on; the mistake is told where those of threads are.
        args = (type(exc), exc, exc.__traceback__, threading.current_thread())
        threading.excepthook(threading.ExceptHookArgs(args))


def _received(sock: socket.socket, buffer: bytearray, message: bytes) -> bytes | None:
    """What came over TCP, when all of it is there. The first call finds it connected, and sends."""
    if not buffer:
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        buffer += b"\0"  # marks that the question has been sent
        # It fits into the buffer of a socket that is new.
        sock.send(len(message).to_bytes(2) + message)
        return None
    data = sock.recv(_LARGEST)
    if not data:
        raise ConnectionResetError("closed before it answered")
    buffer += data
    if len(buffer) < 3 or len(buffer) - 3 < int.from_bytes(buffer[1:3]):
        return None
    return bytes(buffer[3 : 3 + int.from_bytes(buffer[1:3])])


def _family(server: Server) -> int:
    return socket.AF_INET6 if ":" in server.host else socket.AF_INET


def _sockaddr(server: Server) -> tuple[Any, ...]:
    if ":" not in server.host:
        return (server.host, server.port)
    host, _, zone = server.host.partition("%")
    index = int(zone) if zone.isdigit() else socket.if_nametoindex(zone) if zone else 0
    return (host, server.port, 0, index)
