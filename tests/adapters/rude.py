"""A server that behaves badly in every way a client should survive, by the path that is asked for.

    with Rude() as rude:
        client.get(rude.url("/header-trickle"))

In threads of its own, so that it serves clients of all kinds, and all it has open ends with it.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from types import TracebackType
from typing import Final

OK: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PACE: Final = 0.05


class Rude:
    """What each path does is in `_answer`.

    Args:
        tls: to speak TLS; a context of a server.
        silent_tls: whether the handshake gets no answer.
        trickled_tls: whether it gets its answer one byte at a time.

    Attributes:
        port: on 127.0.0.1.
        heads: of the requests that came.
        open: connections that are open.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        silent_tls: bool = False,
        trickled_tls: bool = False,
    ) -> None:
        self._tls = tls
        self._silent = silent_tls
        self._trickled = trickled_tls
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.heads: list[str] = []
        self.open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        scheme = "https" if self._tls or self._silent or self._trickled else "http"
        return f"{scheme}://{host}:{self.port}{path}"

    def __enter__(self) -> Rude:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in tuple(self.open):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its client has gone
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # it was closed
            self.open.add(sock)
            thread = threading.Thread(target=self._serve, args=[sock], daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        sock = plain
        try:
            if self._silent:
                self._hold(sock)
            elif self._trickled:
                sock.sendall(b"\x16\x03\x03\x10\x00\x02")  # of a record with 4096 bytes
                while not self._over.wait(PACE):
                    sock.sendall(b"\x00")
            elif self._tls is not None:
                sock = self._tls.wrap_socket(plain, server_side=True)
                self.open.discard(plain)
                self.open.add(sock)
            while not self._over.is_set() and self._request(sock):
                pass
        except OSError:
            return  # the client has gone
        finally:
            self.open.discard(sock)
            sock.close()

    def _request(self, sock: socket.socket) -> bool:
        head = b""
        while b"\r\n\r\n" not in head:
            part = sock.recv(1) if b"upload" in head else sock.recv(4096)
            if not part:
                return False
            head += part
        text = head.decode("latin-1")
        self.heads.append(text)
        return self._answer(sock, text.split(" ")[1])

    def _answer(self, sock: socket.socket, path: str) -> bool:
        trickled = {
            "/header-trickle": (b"HTTP/1.1 200 OK\r\nx-slow: ", b"a"),
            "/body-trickle": (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"b"),
            "/chunk-trickle": (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                b"1\r\nc\r\n",
            ),
            "/interim-flood": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
        }
        if path in trickled:
            first, again = trickled[path]
            sock.sendall(first)
            while not self._over.wait(PACE):
                sock.sendall(again)
            return False
        if path in ("/silent", "/upload") or ":" in path:  # also a CONNECT
            self._hold(sock)
            return False
        if path.startswith("/redirect/"):
            self._over.wait(PACE)
            onward = f"/redirect/{int(path.rpartition('/')[2]) + 1}"
            sock.sendall(
                f"HTTP/1.1 302 Found\r\nlocation: {onward}\r\ncontent-length: 0\r\n\r\n".encode()
            )
            return True
        if path == "/interim":
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3)
        if path == "/spent":
            sock.sendall(
                b"HTTP/1.1 504 Gateway Timeout\r\ndeadline-exceeded: deadline;hop=orders\r\n"
                b"content-length: 0\r\n\r\n"
            )
            return True
        sock.sendall(OK)
        return True

    def _hold(self, sock: socket.socket) -> None:
        """Say nothing until the client goes."""
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        while not self._over.is_set() and not poll.poll(20):
            pass

    def settled(self) -> bool:
        """Whether every client has gone within a second or two."""
        for _ in range(200):
            if not self.open:
                return True
            time.sleep(0.01)
        return False


class FullQueue:
    """A port whose accept queue is full: Linux drops what knocks, as a firewall would.

    Args:
        address: of this host; the empty text for all of them, which share one queue.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._address = address

    def __enter__(self) -> FullQueue:
        self._listener = socket.socket()
        self._listener.bind((self._address, 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._fill = []
        for _ in range(2):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", self.port))
            self._fill.append(sock)
        time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._fill):
            sock.close()
