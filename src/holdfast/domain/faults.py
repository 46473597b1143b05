"""What kind of failure an error is, and whether trying again can help.

Errors of other libraries enter through one table, by the name of their class (`module.qualname`),
looked up over the class and its bases. So nothing foreign is imported, and a library that is not
installed costs nothing. The nearest class with a row decides; among the rows of one class, the
first whose numbers hold.

*Wrapped* rows are for classes that only say that something did not work (`httpx.ConnectError`): the
errors that they were raised from are asked first, and the row speaks only where those do not know.

A `TimeoutError` without a number is the end of a limit in this process: `timed_out`. One with
`ETIMEDOUT` is from the kernel, whose peer stopped answering: `system`.

Sources: the class hierarchies of the named libraries; errno(3); getaddrinfo(3); SQLSTATE classes
08, 53 and 57 of PostgreSQL; the status codes of gRPC.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal, cast

from holdfast.domain.cause import CauseKind
from holdfast.domain.errors import DeadlineExceeded, OutcomeUnknown, PhaseTimeout, ScopeEnded
from holdfast.domain.phases import DIALLING, Phase

__all__ = ["ROWS", "Fault", "Finding", "Retry", "Row", "classify", "examine", "is_retryable"]


class Fault(StrEnum):
    """The kinds of failure. The values are stable: they are in metrics and logs."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    REFUSED = "refused"
    RESET = "reset"
    DNS = "dns"
    TLS = "tls"
    SYSTEM = "system"
    PROTOCOL = "protocol"
    OVERLOAD = "overload"
    UNKNOWN = "unknown"


class Retry(StrEnum):
    """When trying again can help.

    `ALWAYS`: nothing was sent. `IDEMPOTENT`: it may have been done, so only if doing it twice is
    harmless. `NEVER`: it would fail again, or nobody waits for it any more.
    """

    ALWAYS = "always"
    IDEMPOTENT = "idempotent"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        name: `module.qualname` of an exception class; its subclasses are meant as well.
        fault: what kind of failure it is.
        retry: when trying again can help.
        numbers: values of `errno`, or names of gRPC status codes; empty for every error.
        wrapped: whether the errors that it was raised from know better.
    """

    name: str
    fault: Fault
    retry: Retry
    numbers: frozenset[int | str] = frozenset()
    wrapped: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known about an error.

    Attributes:
        fault: what kind of failure it is.
        retry: when trying again can help.
        row: name of the row that decided; empty when none did.
        by: `"scope"` for an end that Holdfast brought about, `"kernel"` for an error with a number
            of the operating system, `"library"` for all others.
    """

    fault: Fault
    retry: Retry
    row: str = ""
    by: Literal["scope", "kernel", "library"] = "library"


_UNKNOWN: Final = Finding(Fault.UNKNOWN, Retry.NEVER)
_UNSENT: Final = frozenset({Phase.POOL, *DIALLING})
_DEPTH: Final = 16
_ALWAYS, _SAFE, _NEVER = Retry.ALWAYS, Retry.IDEMPOTENT, Retry.NEVER


def _rows(
    fault: Fault, retry: Retry, names: str, module: str = "", wrapped: bool = False
) -> tuple[Row, ...]:
    prefix = f"{module}." if module else ""
    return tuple(Row(prefix + name, fault, retry, wrapped=wrapped) for name in names.split())


def _numbered(name: str, fault: Fault, retry: Retry, numbers: str) -> Row:
    # errno names that this system lacks are left out; gRPC status names are taken as they are.
    known: set[int | str] = set()
    for number in numbers.split():
        if name.startswith("grpc."):
            known.add(number)
        elif number in errno.errorcode.values():
            known.add(cast(int, getattr(errno, number)))
    return Row(name, fault, retry, frozenset(known))


def _http_rows(module: str) -> tuple[Row, ...]:
    """The classes that httpx, httpcore and their successors have in common."""
    return (
        *_rows(Fault.TIMED_OUT, _ALWAYS, "ConnectTimeout PoolTimeout", module),
        *_rows(Fault.TIMED_OUT, _SAFE, "TimeoutException", module),
        *_rows(Fault.REFUSED, _ALWAYS, "ConnectError", module, wrapped=True),
        *_rows(Fault.RESET, _SAFE, "NetworkError RemoteProtocolError", module, wrapped=True),
        *_rows(Fault.REFUSED, _ALWAYS, "ProxyError", module, wrapped=True),
        *_rows(Fault.PROTOCOL, _NEVER, "ProtocolError UnsupportedProtocol", module),
    )


_OS: Final = "builtins.OSError"
_GRPC: Final = "grpc.RpcError"
_AIOHTTP: Final = "aiohttp.client_exceptions"
_REQUESTS: Final = "requests.exceptions"
_URLLIB3: Final = "urllib3.exceptions"
_ASYNCPG: Final = "asyncpg.exceptions"
_PSYCOPG: Final = "psycopg.errors"
_REDIS: Final = "redis.exceptions"

ROWS: Final[tuple[Row, ...]] = (
    # Python: cancellation and time
    *_rows(Fault.CANCELLED, _NEVER, "asyncio.exceptions.CancelledError"),
    *_rows(Fault.CANCELLED, _NEVER, "concurrent.futures._base.CancelledError trio.Cancelled"),
    *_rows(Fault.CANCELLED, _NEVER, "builtins.KeyboardInterrupt builtins.SystemExit"),
    *_rows(Fault.CANCELLED, _NEVER, "builtins.GeneratorExit"),
    _numbered("builtins.TimeoutError", Fault.SYSTEM, _SAFE, "ETIMEDOUT"),
    *_rows(Fault.TIMED_OUT, _SAFE, "builtins.TimeoutError trio.TooSlowError"),
    # Python: names and certificates
    Row("socket.gaierror", Fault.DNS, _ALWAYS, frozenset({-3, 2, 11002})),  # EAI_AGAIN, 3 systems
    *_rows(Fault.DNS, _NEVER, "socket.gaierror socket.herror"),
    *_rows(Fault.TLS, _NEVER, "ssl.SSLCertVerificationError"),
    *_rows(Fault.RESET, _SAFE, "ssl.SSLEOFError ssl.SSLZeroReturnError"),
    *_rows(Fault.TLS, _NEVER, "ssl.SSLError"),
    # c-ares: ESERVFAIL, ECONNREFUSED and ETIMEOUT are about the name server, not about the name
    Row("aiodns.error.DNSError", Fault.DNS, _ALWAYS, frozenset({3, 11, 12})),
    Row("pycares.AresError", Fault.DNS, _ALWAYS, frozenset({3, 11, 12})),
    *_rows(Fault.DNS, _NEVER, "aiodns.error.DNSError pycares.AresError"),
    # Python: sockets
    *_rows(Fault.REFUSED, _ALWAYS, "builtins.ConnectionRefusedError"),
    *_rows(Fault.RESET, _SAFE, "builtins.ConnectionError"),
    *_rows(Fault.RESET, _SAFE, "http.client.RemoteDisconnected http.client.IncompleteRead"),
    *_rows(Fault.RESET, _SAFE, "asyncio.exceptions.IncompleteReadError"),
    *_rows(Fault.PROTOCOL, _NEVER, "http.client.HTTPException", wrapped=True),
    _numbered(_OS, Fault.REFUSED, _ALWAYS, "ECONNREFUSED"),
    # Also what an established connection may report in the end, so not always before sending.
    _numbered(_OS, Fault.REFUSED, _SAFE, "EHOSTUNREACH ENETUNREACH EHOSTDOWN"),
    _numbered(_OS, Fault.RESET, _SAFE, "ECONNRESET ECONNABORTED EPIPE ENETRESET ESHUTDOWN"),
    _numbered(_OS, Fault.RESET, _SAFE, "ENETDOWN ENOTCONN"),
    _numbered(_OS, Fault.SYSTEM, _SAFE, "ETIMEDOUT"),
    _numbered(_OS, Fault.CANCELLED, _NEVER, "ECANCELED"),
    _numbered(_OS, Fault.OVERLOAD, _SAFE, "EMFILE ENFILE ENOBUFS ENOMEM EAGAIN"),
    _numbered(_OS, Fault.SYSTEM, _ALWAYS, "EADDRNOTAVAIL EINTR"),
    *_rows(Fault.SYSTEM, _NEVER, _OS, wrapped=True),
    *_rows(Fault.SYSTEM, _NEVER, "builtins.MemoryError"),
    # httpx and its successor, with the layers below
    *_http_rows("httpx"),
    *_http_rows("httpx2"),
    *_http_rows("httpcore"),
    *_http_rows("httpcore2"),
    *_rows(Fault.RESET, _ALWAYS, "ConnectionNotAvailable", "httpcore"),
    *_rows(Fault.RESET, _ALWAYS, "ConnectionNotAvailable", "httpcore2"),
    *_rows(Fault.PROTOCOL, _NEVER, "httpx.DecodingError httpx2.DecodingError"),
    *_rows(Fault.RESET, _SAFE, "anyio.BrokenResourceError trio.BrokenResourceError", wrapped=True),
    *_rows(Fault.RESET, _SAFE, "anyio.ClosedResourceError trio.ClosedResourceError", wrapped=True),
    *_rows(Fault.RESET, _SAFE, "EndOfStream IncompleteRead", "anyio"),
    *_rows(Fault.REFUSED, _ALWAYS, "anyio.ConnectionFailed", wrapped=True),
    *_rows(Fault.PROTOCOL, _NEVER, "h11._util.ProtocolError"),
    # aiohttp: its errors are OSErrors too, with the errno of the original
    *_rows(Fault.DNS, _ALWAYS, "ClientConnectorDNSError", _AIOHTTP, wrapped=True),
    *_rows(Fault.TLS, _NEVER, "ClientConnectorCertificateError ClientSSLError", _AIOHTTP),
    *_rows(Fault.TLS, _NEVER, "ServerFingerprintMismatch", _AIOHTTP),
    *_rows(Fault.TIMED_OUT, _ALWAYS, "ConnectionTimeoutError", _AIOHTTP),
    *_rows(Fault.TIMED_OUT, _SAFE, "ServerTimeoutError", _AIOHTTP),
    *_rows(Fault.REFUSED, _ALWAYS, "ClientConnectorError", _AIOHTTP, wrapped=True),
    *_rows(Fault.RESET, _SAFE, "ClientConnectionError ClientPayloadError", _AIOHTTP, wrapped=True),
    *_rows(Fault.RESET, _SAFE, "UploadAbortedError", _AIOHTTP, wrapped=True),
    *_rows(Fault.PROTOCOL, _NEVER, "InvalidURL ClientResponseError", _AIOHTTP),
    # requests and urllib3
    *_rows(Fault.TIMED_OUT, _ALWAYS, "ConnectTimeout", _REQUESTS),
    *_rows(Fault.TIMED_OUT, _SAFE, "Timeout", _REQUESTS),
    *_rows(Fault.TLS, _NEVER, "SSLError", _REQUESTS, wrapped=True),
    *_rows(Fault.RESET, _SAFE, "ConnectionError ChunkedEncodingError", _REQUESTS, True),
    *_rows(Fault.PROTOCOL, _NEVER, "RequestException", _REQUESTS, wrapped=True),
    *_rows(Fault.DNS, _ALWAYS, "NameResolutionError", _URLLIB3, wrapped=True),
    *_rows(Fault.REFUSED, _ALWAYS, "NewConnectionError", _URLLIB3, wrapped=True),
    *_rows(Fault.TIMED_OUT, _ALWAYS, "ConnectTimeoutError EmptyPoolError", _URLLIB3),
    *_rows(Fault.TIMED_OUT, _SAFE, "TimeoutError", _URLLIB3),
    *_rows(Fault.TLS, _NEVER, "SSLError", _URLLIB3, wrapped=True),
    *_rows(Fault.RESET, _SAFE, "ProtocolError IncompleteRead", _URLLIB3, wrapped=True),
    *_rows(Fault.REFUSED, _ALWAYS, "ProxyError", _URLLIB3, wrapped=True),
    *_rows(Fault.PROTOCOL, _NEVER, "HTTPError", _URLLIB3, wrapped=True),
    # gRPC: one class, told apart by its status
    _numbered(_GRPC, Fault.CANCELLED, _NEVER, "CANCELLED"),
    _numbered(_GRPC, Fault.TIMED_OUT, _NEVER, "DEADLINE_EXCEEDED"),
    _numbered(_GRPC, Fault.RESET, _SAFE, "UNAVAILABLE ABORTED"),
    _numbered(_GRPC, Fault.OVERLOAD, _ALWAYS, "RESOURCE_EXHAUSTED"),
    _numbered(_GRPC, Fault.PROTOCOL, _NEVER, "UNIMPLEMENTED INTERNAL DATA_LOSS"),
    *_rows(Fault.UNKNOWN, _NEVER, _GRPC, wrapped=True),
    *_rows(Fault.CANCELLED, _NEVER, "grpc.FutureCancelledError"),
    *_rows(Fault.TIMED_OUT, _SAFE, "grpc.FutureTimeoutError"),
    # PostgreSQL: 57014 is both a statement time-out and a cancel request; nobody waits any more
    *_rows(Fault.TIMED_OUT, _NEVER, "QueryCanceledError TransactionTimeoutError", _ASYNCPG),
    *_rows(Fault.TIMED_OUT, _NEVER, "IdleInTransactionSessionTimeoutError", _ASYNCPG),
    *_rows(Fault.TIMED_OUT, _SAFE, "LockNotAvailableError", _ASYNCPG),
    *_rows(Fault.REFUSED, _ALWAYS, "CannotConnectNowError ClientCannotConnectError", _ASYNCPG),
    *_rows(Fault.REFUSED, _ALWAYS, "ConnectionRejectionError", _ASYNCPG),
    *_rows(Fault.OVERLOAD, _ALWAYS, "TooManyConnectionsError", _ASYNCPG),
    *_rows(Fault.RESET, _SAFE, "PostgresConnectionError AdminShutdownError", _ASYNCPG),
    *_rows(Fault.RESET, _SAFE, "CrashShutdownError IdleSessionTimeoutError", _ASYNCPG),
    *_rows(Fault.TIMED_OUT, _NEVER, "QueryCanceled TransactionTimeout", _PSYCOPG),
    *_rows(Fault.TIMED_OUT, _NEVER, "IdleInTransactionSessionTimeout", _PSYCOPG),
    *_rows(Fault.TIMED_OUT, _ALWAYS, "ConnectionTimeout", _PSYCOPG),
    *_rows(Fault.TIMED_OUT, _SAFE, "LockNotAvailable CancellationTimeout", _PSYCOPG),
    *_rows(Fault.REFUSED, _ALWAYS, "CannotConnectNow", _PSYCOPG),
    *_rows(Fault.REFUSED, _ALWAYS, "SqlclientUnableToEstablishSqlconnection", _PSYCOPG),
    *_rows(Fault.REFUSED, _ALWAYS, "SqlserverRejectedEstablishmentOfSqlconnection", _PSYCOPG),
    *_rows(Fault.OVERLOAD, _ALWAYS, "TooManyConnections", _PSYCOPG),
    *_rows(Fault.RESET, _SAFE, "ConnectionException AdminShutdown CrashShutdown", _PSYCOPG),
    *_rows(Fault.RESET, _SAFE, "IdleSessionTimeout", _PSYCOPG),
    *_rows(Fault.SYSTEM, _NEVER, "psycopg.OperationalError", wrapped=True),
    *_rows(Fault.TIMED_OUT, _ALWAYS, "psycopg_pool.PoolTimeout"),
    *_rows(Fault.TIMED_OUT, _ALWAYS, "sqlalchemy.exc.TimeoutError"),
    *_rows(Fault.RESET, _SAFE, "sqlalchemy.exc.DisconnectionError", wrapped=True),
    *_rows(Fault.UNKNOWN, _NEVER, "sqlalchemy.exc.DBAPIError", wrapped=True),
    # Redis
    *_rows(Fault.TIMED_OUT, _SAFE, "redis.exceptions.TimeoutError"),
    *_rows(Fault.OVERLOAD, _ALWAYS, "MaxConnectionsError BusyLoadingError", _REDIS),
    *_rows(Fault.PROTOCOL, _NEVER, "AuthenticationError AuthorizationError", _REDIS),
    *_rows(Fault.RESET, _SAFE, "redis.exceptions.ConnectionError", wrapped=True),
    # WebSocket
    *_rows(Fault.RESET, _SAFE, "websockets.exceptions.ConnectionClosed", wrapped=True),
    *_rows(Fault.PROTOCOL, _NEVER, "websockets.exceptions.InvalidHandshake"),
)
"""The table. Order matters only among rows of the same class."""

_TABLE: Final[dict[str, tuple[Row, ...]]] = {
    name: tuple(row for row in ROWS if row.name == name) for name in {row.name for row in ROWS}
}
# asyncio joins the errors of several addresses into one text, without a number, before 3.12.
_JOINED: Final = "Multiple exceptions: "
_ERRNO: Final = re.compile(r"\[Errno (-?[0-9]{1,6})\]")


def _number(exc: BaseException) -> int | str | None:
    """The errno of an error, the name of its gRPC status, or a code in its first argument."""
    number: object = getattr(exc, "errno", None)
    if isinstance(number, int):
        return number
    code: object = getattr(exc, "code", None)
    if callable(code) and any(cls.__qualname__ == "RpcError" for cls in type(exc).__mro__):
        try:
            status: object = getattr(code(), "name", None)
        except Exception:  # foreign code; an error that cannot be read is an unknown one
            return None
        return status if isinstance(status, str) else None
    first: object = exc.args[0] if exc.args else None
    if isinstance(first, int):
        return first
    if isinstance(first, str) and first.startswith(_JOINED):
        numbers = set(_ERRNO.findall(first[:4096]))
        if len(numbers) == 1:
            return int(numbers.pop())
    return None


def _match(exc: BaseException) -> tuple[Row | None, Row | None]:
    """The row of the nearest class that is not a wrapper, and the row of the nearest that is."""
    number = _number(exc)
    wrapper: Row | None = None
    for cls in type(exc).__mro__:
        for row in _TABLE.get(f"{cls.__module__}.{cls.__qualname__}", ()):
            if row.numbers and number not in row.numbers:
                continue
            if row.wrapped:
                wrapper = wrapper or row
            elif wrapper is None or row.numbers:
                return row, wrapper
    return None, wrapper


def _origins(exc: BaseException) -> Iterator[BaseException]:
    """The errors that an error was raised from, nearest first; members of a group among them."""
    members: object = getattr(exc, "exceptions", None)
    if isinstance(members, tuple):
        for member in cast("tuple[object, ...]", members)[:_DEPTH]:
            if isinstance(member, BaseException):
                yield member
    if exc.__cause__ is not None:
        yield exc.__cause__
        return
    # httpcore raises `from None`, urllib has no chain: both keep the original as first argument.
    if exc.args and isinstance(exc.args[0], BaseException):
        yield exc.args[0]
    # With a number of its own it is no wrapper: what was being handled then is another matter.
    numbered = isinstance(getattr(exc, "errno", None), int)
    if exc.__context__ is not None and not exc.__suppress_context__ and not numbered:
        yield exc.__context__


def _found(row: Row, exc: BaseException) -> Finding:
    kernel = isinstance(getattr(exc, "errno", None), int) and row.fault is not Fault.DNS
    return Finding(row.fault, row.retry, row.name, "kernel" if kernel else "library")


def _behind(exc: BaseException, seen: set[int]) -> Finding | None:
    """What the errors behind a wrapper say. A cancellation there was replaced, so it is skipped."""
    for origin in _origins(exc):
        if id(origin) in seen or len(seen) >= _DEPTH:
            continue
        finding = _examine(origin, seen)
        if finding.row and finding.fault not in (Fault.CANCELLED, Fault.UNKNOWN):
            return finding
    return None


def _examine(exc: BaseException, seen: set[int]) -> Finding:
    seen.add(id(exc))
    if isinstance(exc, ScopeEnded):
        late = isinstance(exc, DeadlineExceeded) or (
            isinstance(exc, OutcomeUnknown) and exc.cause.kind is CauseKind.DEADLINE
        )
        fault = Fault.TIMED_OUT if late else Fault.CANCELLED
        return Finding(
            fault, Retry.NEVER, f"{type(exc).__module__}.{type(exc).__qualname__}", "scope"
        )
    if isinstance(exc, PhaseTimeout):
        # A share is spent, and the whole is not. Until the request goes out, nothing was sent.
        retry = _ALWAYS if exc.phase in _UNSENT else _SAFE
        return Finding(Fault.TIMED_OUT, retry, "holdfast.domain.errors.PhaseTimeout", "scope")
    row, wrapper = _match(exc)
    if wrapper is None and row is not None:
        return _found(row, exc)
    if wrapper is None and not hasattr(exc, "exceptions"):
        return _UNKNOWN
    finding = _behind(exc, seen)
    if finding is None:
        decided = row or wrapper
        finding = _UNKNOWN if decided is None else _found(decided, exc)
    # A wrapper for the phase of connecting knows that nothing was sent, whatever went wrong there.
    if wrapper is not None and wrapper.retry is Retry.ALWAYS and finding.retry is _SAFE:
        finding = replace(finding, retry=_ALWAYS)
    return finding


def examine(exc: BaseException) -> Finding:
    """What is known about an error: its fault, when to retry, who brought it about, which row.

    Looks at most at 16 errors of the chain; cycles are safe. Foreign code is not run, save for
    `code()` of a gRPC error.
    """
    return _examine(exc, set())


def classify(exc: BaseException) -> Fault:
    """What kind of failure an error is; `Fault.UNKNOWN` when the table has no row for it."""
    return _examine(exc, set()).fault


def is_retryable(exc: BaseException, *, idempotent: bool = True) -> bool:
    """Whether trying again can help and does no harm.

    Never after a limit or a cancellation of Holdfast, nor for certificates and unknown errors;
    always where nothing was sent; else only if the work is idempotent.

    Args:
        exc: what the attempt raised.
        idempotent: whether doing the work twice is harmless.
    """
    retry = _examine(exc, set()).retry
    return retry is Retry.ALWAYS or (idempotent and retry is Retry.IDEMPOTENT)
