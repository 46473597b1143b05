"""A call of a session: its record, its request, and its response, whose end is that of the call.

What the record counts: `sent` is all that was written to the connection, heads included, over all
redirects; `received` is the body of the last response as it came, compressed where it was, without
its head and without the framing of chunks.
"""

from __future__ import annotations

import asyncio
import socket
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

from aiohttp import ClientRequest, ClientResponse
from aiohttp.helpers import BaseTimerContext

from holdfast.adapters.aiohttp.connecting import CURRENT, Dialling
from holdfast.domain.phases import Phase
from holdfast.runtime.net.phased import blamed
from holdfast.runtime.net.resolver import Resolver
from holdfast.runtime.net.wired import RESET
from holdfast.runtime.outbound import Outbound

__all__ = ["Request", "Response", "SessionCall"]


class SessionCall(Dialling):
    """A call, and the transport that it was sent by last.

    Args:
        outbound: of the session.
        session: that calls.
        method: of the request.
        url: of the request.
        resolver: who looks names up; the one of the connector when none is given.
    """

    __slots__ = ("_context", "answers", "content", "transport", "writer", "written")

    def __init__(
        self, outbound: Outbound, session: Any, method: str, url: Any, resolver: Resolver | None
    ) -> None:
        super().__init__(outbound, session, method, url, resolver)
        self._context: Context | None = None
        if outbound.options.observer is not None:
            # Most ends are found out by who reads the connection, in whatever context that is.
            self._context = copy_context()
        self.answers = 0
        self.transport: Any = None
        self.content: Any = None
        self.writer: Any = None
        self.written = 0

    def sent_by(self, response: Any) -> None:
        """The request was handed over; what is still to be written is counted at the end."""
        if self.writer is not None:
            self.written += self.writer.output_size
        self.writer = response._stream_writer
        if self.writer is None:
            self.written += response._output_size

    def done(self, error: BaseException | None = None) -> None:
        """See `Call.done`; the observer is told in the context of the one who called."""
        self._count()
        if self._context is None:
            super().done(error)
        else:
            # A copy, as one that is entered already cannot be entered.
            self._context.copy().run(super().done, error)

    def _count(self) -> None:
        trail, writer, content = self.trail, self.writer, self.content
        trail.sent = self.written + (0 if writer is None else writer.output_size)
        if content is not None and content.total_bytes:  # an empty one knows no other number
            trail.received = content.total_raw_bytes

    @property
    def told(self) -> bool:
        """Whether its end is known."""
        return self.trail.current is None and self.trail.phase is Phase.BODY

    def failed(self, exc: BaseException) -> BaseException:
        """Its body has failed; the error to raise for it."""
        if self.told:
            return exc
        error: BaseException = exc
        self._count()
        if isinstance(exc, asyncio.CancelledError):
            blamed(self.trail, self.now())
        elif isinstance(exc, Exception):
            error = self.explained(exc, late=isinstance(exc, TimeoutError) and exc.errno is None)
        self.done(error)
        return error

    def drop(self) -> None:
        """It has failed: what it has not sent is dropped. aiohttp closes, and that would wait for a
        peer which does not read, with a descriptor and all that is buffered, for ever."""
        transport = self.transport
        if transport is None or not transport.is_closing():
            return
        try:
            unsent = transport.get_write_buffer_size()
        except AttributeError:
            return  # of TLS, and closed so far that it holds nothing any more
        if unsent:
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.abort()


class Request(ClientRequest):
    """A request that says when it has been sent."""

    async def send(self, conn: Any) -> ClientResponse:
        call = CURRENT.get()
        if not isinstance(call, SessionCall):
            return await super().send(conn)
        call.transport = conn.transport
        response = await super().send(conn)
        call.sent_by(response)
        writer: Any = self._writer
        if writer is None or writer.done():
            call.trail.begin(Phase.HEADER, call.now())
        else:
            writer.add_done_callback(partial(_sent, call))
        return response


def _sent(call: SessionCall, _: object) -> None:
    if call.trail.current is Phase.REQUEST:
        call.trail.begin(Phase.HEADER, call.now())


class Response(ClientResponse):
    """A response whose body ends with its call, and whose end is the end of the call."""

    _holdfast_call: SessionCall | None = None

    async def start(self, connection: Any) -> ClientResponse:
        call = CURRENT.get()
        if not isinstance(call, SessionCall):
            return await super().start(connection)
        protocol = connection.protocol
        read = protocol.read

        async def noting() -> Any:
            found = await read()
            if 101 < found[0].code < 200:
                call.trail.interim = found[0].code
            return found

        protocol.read = noting
        try:
            response = await super().start(connection)
        finally:
            del protocol.read
        trail = call.trail
        trail.redirects = call.answers
        call.answers += 1
        trail.begin(Phase.BODY, call.now())
        call.content = content = response.content
        subject: Any = content
        if not content.is_eof():
            subject._timer = _Timer(subject._timer, call)
        return response

    def watch(self, call: SessionCall) -> None:
        """It is the response to `call`, after all redirects: the end of it ends the call."""
        self._holdfast_call = call
        content = self.content
        if self.status == 101 or self.method == "CONNECT" or content.is_eof():
            call.done()
        elif content.exception() is None:
            content.on_eof(call.done)

    def close(self) -> None:
        self._settle()
        super().close()

    def release(self) -> Any:
        self._settle()
        return super().release()

    def _settle(self) -> None:
        # One that failed while nobody waited for it has told nobody.
        call = self._holdfast_call
        if call is None or call.told:
            return
        failure = self.content.exception()
        if failure is None:
            call.done()
        else:
            call.failed(failure)


class _Timer(BaseTimerContext):
    """aiohttp's timer around every wait for a part of the body; what it raises becomes ours."""

    def __init__(self, inner: Any, call: SessionCall) -> None:
        self._inner = inner
        self._call = call

    def assert_timeout(self) -> None:
        try:
            self._inner.assert_timeout()
        except TimeoutError as exc:
            self._raise(exc)

    def __enter__(self) -> BaseTimerContext:
        try:
            self._inner.__enter__()
        except TimeoutError as exc:
            self._raise(exc)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        try:
            done: bool | None = self._inner.__exit__(exc_type, exc_val, exc_tb)
        except TimeoutError as exc:
            self._raise(exc)
        if exc_val is not None:
            error = self._call.failed(exc_val)
            if error is not exc_val:
                raise error from exc_val
        return done

    def _raise(self, exc: TimeoutError) -> NoReturn:
        error = self._call.failed(exc)
        if error is exc:
            raise exc
        raise error from exc
