"""Connections of `redis` for threads: every wait of a socket takes what is left then.

Nothing here can be cancelled. A time-out of a socket bounds one wait, and a server that sends a
byte now and then is never late; so the socket is one whose waits all end with the scope.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

from redis.connection import AbstractConnection, Connection, SSLConnection
from redis.exceptions import RedisError, ResponseError

from holdfast.adapters.redis.counting import HARMLESS, Counting
from holdfast.adapters.redis.errors import Command, named, unsent
from holdfast.adapters.redis.sockets import bounded_socket
from holdfast.adapters.redis.variants import kind_of, opaque, plain
from holdfast.domain.errors import HoldfastError
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.domain.phases import DEFAULT_SHARES, DIALLING, Trail
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.blockdial import connect_blocking
from holdfast.runtime.net.resolver import default_resolver
from holdfast.runtime.scope import ambient

__all__ = ["InThread"]

_Base = opaque(AbstractConnection)

_LEAST: Final[Duration] = 0.001
_ONE: Final = (bytes, str)
_SSL: Any = SSLConnection
_TCP: Any = Connection
_DIALS: Final = (_TCP._connect, _SSL._connect)
"""How redis-py dials over TCP. A class that does it in another way goes on to."""


class InThread(_Base, Counting):  # type: ignore[misc,valid-type]
    """To be mixed into a connection of `redis`."""

    direct: ClassVar = ("can_read", "read_response", "should_reconnect")
    theirs_can_read: Callable[..., Any]
    theirs_read_response: Callable[..., Any]
    theirs_should_reconnect: Callable[..., Any]
    _command_packer: Any
    _sock: Any
    socket_timeout: Any
    socket_connect_timeout: Any
    health_check_interval: Any
    older: bool = False
    """Whether its socket is from before it was instrumented, and not bounded."""
    _begun: Instant | None = None

    def _connect(self) -> Any:
        limit = _limit()
        sock = self._connected(limit)
        bound = bounded_socket(sock)
        self.older = False
        bound.limit = limit
        return bound

    def _connected(self, limit: Instant) -> Any:
        this: Any = self
        inner: Any = super()
        if limit == NEVER:
            return inner._connect()
        own = this.socket_connect_timeout
        left = max(_LEAST, limit - monotonic())
        theirs = plain(kind_of(self))
        if theirs._connect in _DIALS and not this.socket_type:
            return self._dialled(limit, left if own is None else min(own, left))
        this.socket_connect_timeout = left if own is None else min(own, left)
        try:
            return inner._connect()
        finally:
            this.socket_connect_timeout = own

    def _dialled(self, limit: Instant, most: Duration) -> Any:
        """As redis-py dials, but the name and all addresses share what is left."""
        this: Any = self
        trail = Trail(
            f"{this.host}:{this.port}", monotonic(), limit, DEFAULT_SHARES, route=DIALLING[:2]
        )
        sock = connect_blocking(
            this.host, this.port, trail=trail, resolver=default_resolver(), most=most
        )
        try:
            _optioned(sock, this)
            sock.settimeout(max(_LEAST, min(most, limit - monotonic())))
            secure = getattr(this, "_wrap_socket_with_ssl", None)
            if secure is not None:
                sock = secure(sock)
            sock.settimeout(this.socket_timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def connect(self) -> None:
        """See redis-py."""
        inner: Any = super()
        if self._sock is not None:
            if not self.older:
                return
            inner.disconnect()
        inner.connect()

    def adopted(self) -> None:
        """It has just been instrumented; its socket, if any, is from before."""
        self.older = self._sock is not None

    def abandoned(self) -> None:
        """It is not instrumented any more: what bounds its socket now is nothing."""
        if self._sock is not None and not self.older:
            self._sock.limit = NEVER

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        inner: Any = super()
        if self._sock is not None:
            return
        self.admit()
        self.preparing += 1
        try:
            inner.connect_check_health(*args, **kwargs)
        except (RedisError, OSError) as exc:
            raise self._explained(exc, "connecting")  # noqa: B904 - that has its cause
        except BaseException:
            inner.disconnect()
            raise
        finally:
            self.preparing -= 1

    def check_health(self) -> None:
        """See redis-py."""
        inner: Any = super()
        self.preparing += 1
        try:
            inner.check_health()
        finally:
            self.preparing -= 1

    def should_reconnect(self) -> bool:
        """Whether it is to be closed before somebody else gets it; see redis-py."""
        return self.owed > 0 or self.older or self.theirs_should_reconnect()

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return self._sock is not None

    # -- commands --------------------------------------------------------------------------------

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        name = args[0]
        if self.blocks or name not in HARMLESS:
            args = self.within(args)
        else:
            self._name, self.waited = name, None
        packed = self._command_packer.pack(*args)
        self.send_packed_command(packed, check_health=kwargs.get("check_health", True))

    def pack_command(self, *args: Any) -> Any:
        """See redis-py."""
        inner: Any = super()
        return inner.pack_command(*self.within(args))

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """See redis-py."""
        inner: Any = super()
        listed = self.within_all(commands)
        return self.counted(inner.pack_commands(listed), len(listed))

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """See redis-py. Written again, as each layer costs a part of what a command does."""
        this: Any = self
        here = ambient()
        limit = NEVER if here is None else here.limit
        begun: Instant | None = None
        if here is not None and limit != NEVER:
            begun = here.driver.now()
            if limit <= begun or limit - begun < self.holdfast.refuse_below:
                self.admit()
        if not self._sock or (check_health and self.health_check_interval):
            known = self.pause()
            if not self._sock:
                this.connect_check_health(check_health=False)
            if check_health:
                this.check_health()
            self.resume(known)
        self._begun = begun
        if self._packed is None and not self.subscribed:
            self.owed += 1
        else:
            self.handed_over(command)
        sock = self._sock
        if not self.older:
            sock.limit = limit
        try:
            for part in (command,) if isinstance(command, _ONE) else command:
                sock.sendall(part)
        except BaseException as exc:
            this.disconnect()
            self.cut = 0  # a server that has a part of it waits for the rest
            if not isinstance(exc, OSError):
                raise
            error = unsent(exc)
            self._failed(error)
            raise self._explained(error, "sending") from exc

    def can_read(self, timeout: Any = 0) -> Any:
        """See redis-py; a wait for a message ends with the scope, and the subscription stays.

        Raises:
            DeadlineExceeded: nothing came, and nothing is left.
        """
        if timeout == 0:
            return self.theirs_can_read(0)
        limit = _limit()
        if self._sock is not None and not self.older:
            self._sock.limit = limit
        if limit == NEVER:
            return self.theirs_can_read(timeout)
        left = max(0.0, limit - monotonic())
        found = self.theirs_can_read(left if timeout is None else min(timeout, left))
        if not found and (timeout is None or left < timeout):
            raise Command("message").over("waiting for a message")
        return found

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """See redis-py."""
        if kwargs or self.lifted:
            return self._read(*args, **kwargs)
        try:
            response = self.theirs_read_response(*args)
        except RedisError as exc:
            if not isinstance(exc, ResponseError):
                self._failed(exc)
                raise self._explained(exc, "reading the answer")  # noqa: B904 - that has its cause
            if self.owed:
                self.owed -= 1
            raise
        if self.owed:
            self.owed -= 1
        return response

    def _read(self, *args: Any, push_request: Any = False, **kwargs: Any) -> Any:
        """An answer that is waited for at the server, or a message."""
        sock = self._sock
        if push_request and sock is not None and not self.older:
            # A message may be waited for anywhere; the answer to a command where that was sent.
            sock.limit = _limit()
        lifted: Any = sock if self.lifted else None
        if lifted is not None:
            lifted.settimeout(None)
        if push_request:
            kwargs["push_request"] = push_request
        try:
            response = self.theirs_read_response(*args, **kwargs)
        except ResponseError:
            self.waited = None
            if self.owed and not push_request:
                self.owed -= 1
            raise
        except RedisError as exc:
            self._failed(exc)
            raise self._explained(exc, "reading the answer")  # noqa: B904 - that has its cause
        finally:
            if lifted is not None and self._sock is lifted:
                lifted.settimeout(self.socket_timeout)
        if self.owed and not push_request:
            self.owed -= 1
        return response if self.waited is None else self.not_nothing(response)

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """See redis-py."""
        inner: Any = super()
        if self._sock is not None:
            self.closed(0)
        inner.disconnect(*args, **kwargs)

    # -- bounds ----------------------------------------------------------------------------------

    def _failed(self, exc: Exception) -> None:
        self.asked = NEVER if self._begun is None else self._begun
        self.failed(exc)

    def _explained(self, exc: Exception, doing: str) -> Exception:
        """Our own error when the time is over, else what redis-py has raised."""
        if isinstance(exc, HoldfastError):
            return exc
        command = Command(named(self._name))
        if not command.spent:
            return exc
        if self._begun is not None:
            command.begun = min(command.begun, self._begun)
        error = command.over(doing)
        error.__cause__ = exc
        return error


def _limit() -> Instant:
    here = ambient()
    return NEVER if here is None else here.limit


def _optioned(sock: Any, connection: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if connection.socket_keepalive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in connection.socket_keepalive_options.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
