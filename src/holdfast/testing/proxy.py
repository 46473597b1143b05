"""A TCP proxy that spoils connections, for tests against real sockets.

    with FaultProxy("127.0.0.1", 5432) as proxy:
        connect("127.0.0.1", proxy.port)
        proxy.to_client.delay(0.2, jitter=0.05)   # answers are late
        proxy.to_client.stall()                   # answers stop coming
        proxy.reset()                             # RST to both sides

It has a thread and a loop of its own, so it works for clients of every kind, and also while the
loop under test is blocked. All methods may be called from any thread and from coroutines; what they
change holds when they return, for the connections that are open and for those to come.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar

from holdfast.domain.errors import UsageError
from holdfast.domain.instant import Duration
from holdfast.runtime.clock import fresh_span_id
from holdfast.testing.direction import Direction
from holdfast.testing.pump import Link, Rules, Then, close_hard

__all__ = ["Carried", "Direction", "FaultProxy", "Then"]

T = TypeVar("T")

_PATIENCE: Final[Duration] = 10.0
"""Seconds that the proxy's thread gets for one order; it needs microseconds."""
_BACKLOG: Final = 512
_MOST_FILLERS: Final = 8


class Carried(NamedTuple):
    """One open connection.

    Attributes:
        client: address of the client, for people.
        to_server: bytes that the server was sent.
        to_client: bytes that the client was sent.
    """

    client: str
    to_server: int
    to_client: int


class _Door(StrEnum):
    OPEN = "open"
    REFUSING = "refusing"
    BLACKHOLE = "blackhole"


class FaultProxy:
    """A TCP proxy in front of one server. Listens while its `with` block runs.

    Args:
        host: of the server.
        port: of the server.
        listen_host: address to listen on.
        listen_port: a free one when 0.
        chance: numbers from 0 to 1, for the jitter; `random.Random(7).random` for a test that is
            to see the same ones each time.

    Attributes:
        to_server: what happens to bytes from the client.
        to_client: what happens to bytes from the server.
        opened: connections that were accepted so far.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
        chance: Callable[[], float] | None = None,
    ) -> None:
        dice = _dice if chance is None else chance
        self._server = (host, port)
        self._own = (listen_host, listen_port)
        self._rules = (Rules(dice), Rules(dice))
        self._links: dict[Link, None] = {}
        self._fillers: list[socket.socket] = []
        self._door = _Door.OPEN
        self._target: tuple[socket.AddressFamily, Any] = (socket.AF_INET, None)
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.opened = 0
        self.to_server = Direction(
            self._rules[0], self._order, lambda: [link.to_server for link in (*self._links,)]
        )
        self.to_client = Direction(
            self._rules[1], self._order, lambda: [link.to_client for link in (*self._links,)]
        )

    # -- beginning and end -----------------------------------------------------------------------

    def __enter__(self) -> FaultProxy:
        """Listen.

        Raises:
            OSError: the server's name is not known, or the own port is taken.
            UsageError: it listens already.
        """
        if self._thread is not None:
            raise UsageError("this proxy listens already; make one for each `with` block")
        family, _, _, _, address = socket.getaddrinfo(*self._server, type=socket.SOCK_STREAM)[0]
        self._target = (family, address)
        self._listener = self._listening()
        # Its end comes with that of the process too: nobody must have to remember it.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._thread.start()
        self._order(self._admit)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._order(self._end)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)
        loop.close()
        self._loop = None

    async def __aenter__(self) -> FaultProxy:
        """The same in a coroutine; holds the loop for less than a millisecond."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return self._own[0]

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._own[1]

    # -- orders ----------------------------------------------------------------------------------

    @property
    def connections(self) -> tuple[Carried, ...]:
        """The connections that are open now."""

        def look() -> tuple[Carried, ...]:
            return tuple(Carried(k.peer, k.to_server.moved, k.to_client.moved) for k in self._links)

        return self._order(look)

    def reset(self) -> None:
        """Break the connections that are open: a RST to both sides."""
        self._order(lambda: self._close_links(hard=True))

    def cut(self) -> None:
        """End the connections that are open: a FIN to both sides, whatever was under way."""
        self._order(lambda: self._close_links(hard=False))

    def accept(self) -> None:
        """New connections are welcome, as at the beginning."""
        self._order(lambda: self._turn(_Door.OPEN))

    def refuse(self) -> None:
        """New connections are refused, as if nobody listened."""
        self._order(lambda: self._turn(_Door.REFUSING))

    def blackhole(self) -> None:
        """New connections get no answer, as if a firewall dropped them.

        On Linux, by a queue that is kept full. Those that still wait when `accept` is called come
        through when their kernel asks again, a second or more after it asked the last time.
        """
        self._order(lambda: self._turn(_Door.BLACKHOLE))

    def heal(self) -> None:
        """Everything works again."""
        self.to_server.heal()
        self.to_client.heal()
        self.accept()

    def _order(self, call: Callable[[], T]) -> T:
        """Call `call` on the thread of the proxy, and wait for what it returns.

        Raises:
            UsageError: the proxy does not run.
        """
        loop = self._loop
        if loop is None:
            raise UsageError("the proxy does not run; use it inside its `with` block")
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as exc:  # whatever it is, it belongs to the one who ordered
                done.set_exception(exc)

        loop.call_soon_threadsafe(run)
        return done.result(_PATIENCE)

    # -- on the thread of the proxy --------------------------------------------------------------

    def _run(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _listening(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._own[0] else socket.AF_INET
        listener = socket.create_server(self._own, family=family, backlog=_BACKLOG)
        listener.setblocking(False)
        self._own = (self._own[0], listener.getsockname()[1])
        return listener

    def _turn(self, door: _Door) -> None:
        if door is self._door:
            return
        if self._door is not _Door.OPEN:
            self._open()
        self._door = door
        loop, listener = self._loop, self._listener
        if door is _Door.OPEN:
            return
        assert loop is not None
        assert listener is not None
        self._accept()  # those who came before are let in
        loop.remove_reader(listener)
        if door is _Door.REFUSING:
            listener.close()
        else:
            self._fill(listener)

    def _open(self) -> None:
        assert self._listener is not None
        if self._door is _Door.REFUSING:
            self._listener = self._listening()
        else:
            self._listener.listen(_BACKLOG)
        self._admit()
        self._accept()
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()

    def _admit(self) -> None:
        assert self._loop is not None
        assert self._listener is not None
        self._loop.add_reader(self._listener, self._accept)

    def _fill(self, listener: socket.socket) -> None:
        listener.listen(0)
        for _ in range(_MOST_FILLERS):
            filler = socket.socket(listener.family, socket.SOCK_STREAM)
            filler.setblocking(False)
            filler.connect_ex(self._own)
            poll = select.poll()
            poll.register(filler, select.POLLOUT)
            if not poll.poll(10):
                filler.close()  # nobody is let in any more, as was to be
                return
            self._fillers.append(filler)

    def _accept(self) -> None:
        assert self._loop is not None
        assert self._listener is not None
        ours = {filler.getsockname() for filler in self._fillers}
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return  # nobody waits, or who did has gone
            if peer in ours:
                sock.close()
                continue
            self.opened += 1
            link = Link(self._loop, sock, _text(peer), self._target, self._rules, self._forget)
            self._links[link] = None

    def _forget(self, link: Link) -> None:
        self._links.pop(link, None)

    def _close_links(self, *, hard: bool) -> None:
        for link in tuple(self._links):
            link.close(hard=hard)

    def _end(self) -> None:
        assert self._loop is not None
        self._close_links(hard=False)
        for filler in self._fillers:
            close_hard(filler)
        if self._listener is not None:
            if self._door is _Door.OPEN:
                self._loop.remove_reader(self._listener)
            self._listener.close()


def _dice() -> float:
    return int(fresh_span_id(), 16) / 2**64


def _text(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
