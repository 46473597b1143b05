"""One request and its response on a connection of httptools.

It does what uvicorn's own does, message by message and byte by byte, with less work: a test plays
the same messages to both and compares.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.server import ServerState

from holdfast.adapters.uvicorn.head import CONNECTION, CONTENT_LENGTH, fields
from holdfast.adapters.uvicorn.watch import Watch

__all__ = ["Connection", "Cycle"]

_TOGETHER: Final = 32_768
"""Bytes of a body that are sooner copied behind its head than written by themselves."""


class Connection(Protocol):
    """What a request comes on; see uvicorn's protocol on httptools, and `Watch`."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    logger: logging.Logger
    access_logger: logging.Logger
    access_log: bool
    server_state: ServerState
    tasks: set[asyncio.Task[None]]
    expect_100_continue: bool
    watch: Watch

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        ...


class Cycle(RequestResponseCycle):
    """See the module.

    Attributes:
        task: that answers it; it takes itself out of the tasks of the server.

    Args:
        connection: that the request came on.
        scope: of the request.
        keep_alive: whether the connection may live on after the response.
    """

    def __init__(self, connection: Connection, scope: Any, keep_alive: bool) -> None:
        # Not super().__init__: it wants an event, of which there is seldom need.
        self.scope = scope
        self.transport = connection.transport
        self.flow = connection.flow
        self.logger = connection.logger
        self.access_logger = connection.access_logger
        self.access_log = connection.access_log
        self.default_headers = connection.server_state.default_headers
        self.on_response = connection.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = connection.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0
        self._server = connection.watch
        self._loop = connection.loop
        self.tasks = connection.tasks
        self.task: asyncio.Task[None] | None = None
        self._head = b""
        self._news = False
        self._event: asyncio.Event | None = None

    # -- what comes ------------------------------------------------------------------------------

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """Set when there is something to receive; made when somebody waits for it."""
        event = self._event
        if event is None:
            event = self._event = asyncio.Event()
            if self._news:
                event.set()
        return event

    def tell(self) -> None:
        """There is something to receive."""
        if self._event is None:
            self._news = True
        else:
            self._event.set()

    async def receive(self) -> Any:
        """The `receive` of the application."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if self.flow.read_paused:
                self.flow.resume_reading()
            if self._event is None and self._news:
                self._news = False
            else:
                await self.message_event.wait()
                self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, bytearray()
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    # -- what goes -------------------------------------------------------------------------------

    async def run_asgi(self, app: Any) -> None:
        """Have `app` answer; where it does not, answer for it or break off."""
        try:
            result = await app(self.scope, self.receive, self.send)
        except BaseException:
            self.logger.exception("Exception in ASGI application\n")
            await self._give_up()
        else:
            if result is not None:
                msg = "ASGI callable should return None, but returned '%s'."
                self.logger.error(msg, result)
                self._break_off()
            elif not self.response_complete and not self.disconnected:
                how = "completing" if self.response_started else "starting"
                self.logger.error(f"ASGI callable returned without {how} response.")
                await self._give_up()
        finally:
            self.on_response = _nothing  # it holds the connection, which holds this
            if self.task is not None:
                self.tasks.discard(self.task)
                self.task = None

    async def _give_up(self) -> None:
        if self.response_started:
            self._break_off()
        else:
            await self.send_500_response()

    def _break_off(self) -> None:
        self.flush()
        self.transport.close()

    async def send(self, message: Any) -> None:
        """The `send` of the application.

        Raises:
            RuntimeError: the message does not come in its turn, or is wrong.
        """
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(
                    f"Expected ASGI message 'http.response.start', but got '{kind}'."
                )
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._begun(message["status"], message.get("headers", ()))
            self._server.heads.hold(self, self._loop)
        elif self.response_complete:
            raise RuntimeError(
                f"Unexpected ASGI message '{kind}' sent, after response already completed."
            )
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            more = message.get("more_body", False)
            self._write(message.get("body", b""), more)
            if not more:
                self._end()

    def flush(self) -> None:
        """See `Held`."""
        head, self._head = self._head, b""
        if head and not self.disconnected:
            self.transport.write(head)

    def _begun(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The head; from now on it is known where the body ends, and whether the connection."""
        if self.access_log:
            self._log(status)
        start = STATUS_LINE[status]
        defaults = self._server.defaults
        defaults.take(self.default_headers)
        block, framing = fields(headers)
        closes = False
        if defaults.framing:
            framing = defaults.framing + framing
        for begin, value in framing:
            if begin == CONTENT_LENGTH:
                if self.chunked_encoding is None:
                    self.expected_content_length = int(value.decode())
                    self.chunked_encoding = False
            elif begin == CONNECTION:
                if b"close" in [token.lower().strip() for token in value.split(b",")]:
                    self.keep_alive = False
                    closes = True
            elif value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
        end = b"\r\n"
        if self.chunked_encoding is None and status not in (204, 304) and not self._bodiless():
            # Neither content-length nor transfer-encoding says where it ends.
            self.chunked_encoding = True
            end = b"transfer-encoding: chunked\r\n\r\n"
        if not self.keep_alive and not closes:
            end = b"connection: close\r\n" + end
        return b"".join((start, defaults.block, block, end))

    def _bodiless(self) -> bool:
        method: str = self.scope["method"]
        return method == "HEAD"

    def _write(self, body: bytes, more: bool) -> None:
        size = len(body)
        if self._bodiless():
            self.expected_content_length = 0
            self.flush()
            return
        if self.chunked_encoding:
            parts = [b"%x\r\n" % size, body, b"\r\n"] if body else []
            if not more:
                parts.append(b"0\r\n\r\n")
            body = b"".join(parts)
        elif size > self.expected_content_length:
            raise RuntimeError("Response content longer than Content-Length")
        else:
            self.expected_content_length -= size
        if self._head and size <= _TOGETHER:
            body = self._head + body
            self._head = b""
        else:
            self.flush()
        self.transport.write(body)

    def _end(self) -> None:
        if self.expected_content_length != 0:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.tell()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _log(self, status: int) -> None:
        self.access_logger.info(
            '%s - "%s %s HTTP/%s" %d',
            get_client_addr(self.scope),
            self.scope["method"],
            get_path_with_query_string(self.scope),
            self.scope["http_version"],
            status,
        )


def _nothing() -> None:
    """The response is complete, or the connection lost."""
