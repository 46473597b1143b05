"""The clients: raw sockets and one epoll in a process of their own.

    python -m bench.stop.load JSON      the fields of `Load`

It writes `ready` when every client has had two answers, goes on until it is told to stop on
standard input (one line of JSON, `{"terms": [INSTANT, ...]}`), waits a moment for answers that are
still due, and writes what it saw as one line of JSON. A line `{"away": SECONDS}` tells that a load
balancer sends new connections elsewhere from then on. It ends by itself when its input ends, and
after `limit` seconds in any case.

Clients are well behaved. They honour `Connection: close`, look at a connection before they use it
again, and try again where a connect is refused. With a view of 5 ms they see what a client 5 ms
away would: they look, and their bytes arrive 5 ms later, whatever has happened in between.
"""

from __future__ import annotations

import errno
import json
import os
import random
import select
import socket
import sys
from dataclasses import dataclass
from enum import Enum, auto
from heapq import heappop, heappush
from time import monotonic
from typing import Final

from bench.stop.tally import LOST, Call, tally

__all__ = ["Load", "complete"]

AGAIN: Final = 0.02
"""Seconds after which a refused connect is tried again."""
LINGER: Final = 1.0
"""Seconds that answers which are due get after the stop; then they count as lost."""


@dataclass(frozen=True)
class Load:
    """What the clients do.

    Attributes:
        path: what they ask for.
        view: seconds between a client's look at its connection and the arrival of its bytes,
            give or take a fifth.
        think: mean seconds between an answer and the next request, exponentially distributed.
        churn: how many of the clients open a connection for each request.
        eager: to have read the answer is to have looked; otherwise they look once more right
            after it, and see a close that came along with it.
        spread: seconds over which the clients begin.
        limit: seconds after which all ends.
    """

    port: int
    path: str = "/wait/200"
    clients: int = 50
    view: float = 0.0
    think: float = 0.0
    churn: int = 0
    eager: bool = False
    spread: float = 0.2
    limit: float = 120.0
    seed: int = 1


class State(Enum):
    AWAY = auto()  # no connection
    DIALING = auto()
    THINKING = auto()
    BLIND = auto()  # has looked; its bytes are on their way
    WAITING = auto()


class Client:
    __slots__ = ("buffer", "churns", "fd", "left", "opened", "sent", "served", "sock", "state")

    def __init__(self, churns: bool) -> None:
        self.churns = churns
        self.state = State.AWAY
        self.sock: socket.socket | None = None
        self.fd = -1
        self.buffer = b""
        self.opened = self.sent = 0.0
        self.served = 0  # on this connection
        self.left = 2  # answers until it is warm


class Clients:
    """All of them, and the loop that drives them."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.request = f"GET {load.path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()
        self.epoll = select.epoll()
        self.timers: list[tuple[float, int, Client, State]] = []
        self.by_fd: dict[int, Client] = {}
        self.dice = random.Random(load.seed)
        self.calls: list[Call] = []
        self.refused = self.serial = 0
        self.refusals: list[float] = []
        self.idle_closes = 0
        self.cold = load.clients
        self.stopping = False
        self.away = float("inf")

    def begin(self) -> None:
        now = monotonic()
        for index in range(self.load.clients):
            client = Client(index < self.load.churn)
            at = now + self.load.spread * index / self.load.clients
            self.later(at, client, State.AWAY)

    def later(self, at: float, client: Client, state: State) -> None:
        """Go on with a client at an instant, unless its state is another one by then."""
        client.state = state
        self.serial += 1
        heappush(self.timers, (at, self.serial, client, state))

    # What the clock brings.

    def tick(self, now: float) -> float:
        """Do what is due; return the seconds until the next."""
        while self.timers and self.timers[0][0] <= now:
            _, _, client, state = heappop(self.timers)
            if client.state is not state:
                continue
            if state is State.BLIND:
                self.ask(client)
            elif not self.stopping:
                if state is State.AWAY:
                    self.dial(client)
                else:
                    self.look(client)
        return max(0.0, self.timers[0][0] - monotonic()) if self.timers else 0.1

    def dial(self, client: Client) -> None:
        if monotonic() >= self.away:
            return
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(("127.0.0.1", self.load.port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self.refuse(client)
            return
        client.sock, client.fd, client.served = sock, sock.fileno(), 0
        client.state = State.DIALING
        self.by_fd[client.fd] = client
        self.epoll.register(client.fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def refuse(self, client: Client) -> None:
        self.refused += 1
        self.refusals.append(monotonic())
        self.later(monotonic() + AGAIN, client, State.AWAY)

    def look(self, client: Client) -> None:
        """See whether the connection stands, and send."""
        assert client.sock is not None
        try:
            client.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            pass
        except OSError:
            self.redial(client)
            return
        else:  # closed, or an answer nobody has asked for
            self.redial(client)
            return
        self.aim(client)

    def aim(self, client: Client) -> None:
        """Send what arrives when the view is over."""
        if self.load.view:
            # Never quite the same, lest the clients fall in step: then it is all of them or none.
            view = self.load.view * self.dice.uniform(0.8, 1.2)
            self.later(monotonic() + view, client, State.BLIND)
        else:
            self.ask(client)

    def redial(self, client: Client) -> None:
        self.idle_closes += 1
        self.drop(client)
        self.dial(client)

    def ask(self, client: Client) -> None:
        assert client.sock is not None
        client.state, client.buffer, client.sent = State.WAITING, b"", monotonic()
        try:
            client.sock.send(self.request)
        except OSError:
            self.lose(client, "reset")
            return
        if self.load.view:
            self.read(client)  # a FIN that came in the blind moment brings no event any more

    # What the sockets bring.

    def ready(self, fd: int, events: int) -> None:
        client = self.by_fd.get(fd)
        if client is None:
            return
        if client.state is State.WAITING:
            if events & ~select.EPOLLOUT:
                self.read(client)
        elif client.state is State.DIALING:
            assert client.sock is not None
            if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.drop(client)
                self.refuse(client)
            elif events & select.EPOLLOUT:
                client.opened = monotonic()
                self.look(client)

    def read(self, client: Client) -> None:
        assert client.sock is not None
        while client.state is State.WAITING:
            try:
                data = client.sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                self.lose(client, "reset")
                return
            if not data:
                self.lose(client, "part" if client.buffer else "eof")
                return
            client.buffer += data
            answer = complete(client.buffer)
            if answer is not None:
                self.answered(client, *answer)
                return

    def answered(self, client: Client, status: int, closes: bool) -> None:
        self.record(client, "ok", status, closes)
        client.served += 1
        if client.left:
            client.left -= 1
            self.cold -= not client.left
            if not self.cold and not client.left:
                print("ready", flush=True)
        if closes or client.churns:
            self.drop(client)
        pause = self.dice.expovariate(1 / self.load.think) if self.load.think else 0.0
        if self.stopping:
            client.state = State.AWAY
        elif pause:
            state = State.THINKING if client.sock else State.AWAY
            self.later(monotonic() + pause, client, state)
        elif client.sock:
            (self.aim if self.load.eager else self.look)(client)
        else:
            self.dial(client)

    def lose(self, client: Client, how: str) -> None:
        self.record(client, how, 0, False)
        self.drop(client)
        self.later(monotonic() + AGAIN, client, State.AWAY)

    def record(self, client: Client, how: str, status: int, closes: bool) -> None:
        call = Call(client.opened, client.served, client.sent, monotonic(), how, status, closes)
        self.calls.append(call)

    def drop(self, client: Client) -> None:
        if client.sock is not None:
            del self.by_fd[client.fd]
            client.sock.close()  # which takes it out of epoll as well
        client.sock, client.state = None, State.AWAY

    # The whole.

    def run(self) -> str:
        """Until the end; what was said on standard input at last."""
        end = monotonic() + self.load.limit
        self.epoll.register(0, select.EPOLLIN)
        self.begin()
        said = ""
        while (now := monotonic()) < end:
            if self.stopping and not any(
                client.state in (State.WAITING, State.BLIND) for client in self.by_fd.values()
            ):
                break
            wait = self.tick(now)
            for fd, events in self.epoll.poll(min(wait, 0.1)):
                if fd == 0:
                    said = self.told(os.read(0, 65536).decode()) or said
                    if self.stopping:
                        self.epoll.unregister(0)
                        end = min(end, monotonic() + LINGER)
                else:
                    self.ready(fd, events)
        for client in list(self.by_fd.values()):
            if client.state is State.WAITING:
                self.lose(client, "silent")
            self.drop(client)
        return said

    def told(self, words: str) -> str:
        """What the command says; an empty input is the end as well."""
        for line in words.splitlines():
            command = json.loads(line)
            if "away" in command:
                self.away = monotonic() + command["away"]
            if "terms" in command:
                self.stopping = True
                return line
        self.stopping = self.stopping or not words
        return ""


def complete(data: bytes) -> tuple[int, bool] | None:
    """Status of an answer and whether it is the last of its connection; None: not all is there."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.split(b"\r\n")
    fields = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (line.partition(b":") for line in lines)
    }
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        whole = body.endswith(b"0\r\n\r\n")
    else:
        whole = len(body) >= int(fields.get(b"content-length", b"0"))
    if not whole:
        return None
    return int(first.split()[1]), b"close" in fields.get(b"connection", b"")


def main(words: str) -> None:
    clients = Clients(Load(**json.loads(words)))
    said = clients.run()
    terms: list[float] = json.loads(said)["terms"] if said else []
    found = tally(clients.calls, terms, clients.refusals)
    found["idle_closes"] = clients.idle_closes
    found["warm"] = clients.cold == 0
    print(json.dumps(found), flush=True)


assert "ok" not in LOST
if __name__ == "__main__":
    main(sys.argv[1])
