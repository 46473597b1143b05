"""Cancelled is not timed out: which kind of failure an error is."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import http.client
import importlib
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import (
    Cancelled,
    DeadlineExceeded,
    InsufficientBudget,
    OutcomeUnknown,
    PhaseTimeout,
)
from holdfast.domain.faults import ROWS, Fault, Retry, classify, examine, is_retryable
from holdfast.domain.phases import Ended, Phase, Trail


def installed(name: str) -> Any:
    """A library, or None: the cases are those of the libraries that are there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


aiohttp, httpcore = installed("aiohttp"), installed("httpcore")
httpx, httpx2 = installed("httpx"), installed("httpx2")
requests, urllib3 = installed("requests"), installed("urllib3")


def stand_in(name: str) -> type[Exception]:
    """A class of a library by its name alone; the table sees no more of it."""
    module, _, cls = name.rpartition(".")
    return type(cls, (Exception,), {"__module__": module, "__qualname__": cls})


CONNECT_ERROR = stand_in("httpx.ConnectError")
NETWORK_ERROR = stand_in("httpx.NetworkError")
CAUSE = Cause(CauseKind.DEADLINE, "a")


def chained(outer: BaseException, *inner: BaseException) -> BaseException:
    """The outer error, raised from the next one, and so on."""
    error = outer
    for cause in inner:
        error.__cause__ = cause
        error = cause
    return outer


def verdict(error: BaseException) -> tuple[Fault, bool, bool]:
    return (
        classify(error),
        is_retryable(error, idempotent=True),
        is_retryable(error, idempotent=False),
    )


ALWAYS, SAFE, NEVER = (True, True), (True, False), (False, False)


Case: TypeAlias = tuple[BaseException, Fault, tuple[bool, bool]]


def foreign_cases() -> Iterator[Case]:
    if httpx:
        yield (httpx.ConnectTimeout("x"), Fault.TIMED_OUT, ALWAYS)
        yield (httpx.PoolTimeout("x"), Fault.TIMED_OUT, ALWAYS)
        yield (httpx.ReadTimeout("x"), Fault.TIMED_OUT, SAFE)
        yield (httpx.ConnectError("x"), Fault.REFUSED, ALWAYS)
        yield (httpx.ReadError("x"), Fault.RESET, SAFE)
        yield (httpx.RemoteProtocolError("x"), Fault.RESET, SAFE)
        yield (httpx.LocalProtocolError("x"), Fault.PROTOCOL, NEVER)
        yield (httpx.UnsupportedProtocol("x"), Fault.PROTOCOL, NEVER)
    if httpx2:
        yield (httpx2.ReadTimeout("x"), Fault.TIMED_OUT, SAFE)
    if httpcore:
        yield (httpcore.ConnectTimeout("x"), Fault.TIMED_OUT, ALWAYS)
    if aiohttp:
        yield (aiohttp.ServerTimeoutError(), Fault.TIMED_OUT, SAFE)
        yield (aiohttp.ConnectionTimeoutError(), Fault.TIMED_OUT, ALWAYS)
        yield (aiohttp.ServerDisconnectedError(), Fault.RESET, SAFE)
        yield (aiohttp.ClientPayloadError("x"), Fault.RESET, SAFE)
        yield (aiohttp.ClientOSError(errno.ECONNRESET, "x"), Fault.RESET, SAFE)
    if requests:
        yield (requests.ConnectTimeout(), Fault.TIMED_OUT, ALWAYS)
        yield (requests.ReadTimeout(), Fault.TIMED_OUT, SAFE)
        yield (requests.ConnectionError(), Fault.RESET, SAFE)
        yield (requests.exceptions.MissingSchema(), Fault.PROTOCOL, NEVER)
    if urllib3:
        yield (urllib3.exceptions.TimeoutError(), Fault.TIMED_OUT, SAFE)
        yield (urllib3.exceptions.ProtocolError(), Fault.RESET, SAFE)


@pytest.mark.parametrize(
    ("error", "fault", "retry"),
    [
        (DeadlineExceeded(CAUSE), Fault.TIMED_OUT, NEVER),
        (InsufficientBudget(CAUSE), Fault.TIMED_OUT, NEVER),
        (Cancelled(CAUSE), Fault.CANCELLED, NEVER),
        (OutcomeUnknown(CAUSE), Fault.TIMED_OUT, NEVER),
        (OutcomeUnknown(replace(CAUSE, kind=CauseKind.CALLER)), Fault.CANCELLED, NEVER),
        (asyncio.CancelledError(), Fault.CANCELLED, NEVER),
        (concurrent.futures.CancelledError(), Fault.CANCELLED, NEVER),
        (KeyboardInterrupt(), Fault.CANCELLED, NEVER),
        (TimeoutError(), Fault.TIMED_OUT, SAFE),
        (TimeoutError("timed out"), Fault.TIMED_OUT, SAFE),
        (TimeoutError(errno.ETIMEDOUT, "x"), Fault.SYSTEM, SAFE),
        (OSError(errno.ETIMEDOUT, "x"), Fault.SYSTEM, SAFE),
        (OSError(errno.ECONNREFUSED, "x"), Fault.REFUSED, ALWAYS),
        (ConnectionRefusedError(), Fault.REFUSED, ALWAYS),
        (OSError(errno.EHOSTUNREACH, "x"), Fault.REFUSED, SAFE),
        (OSError(errno.ECONNRESET, "x"), Fault.RESET, SAFE),
        (BrokenPipeError(), Fault.RESET, SAFE),
        (ConnectionAbortedError(), Fault.RESET, SAFE),
        (OSError(errno.EMFILE, "x"), Fault.OVERLOAD, SAFE),
        (OSError(errno.EINTR, "x"), Fault.SYSTEM, ALWAYS),
        (FileNotFoundError(errno.ENOENT, "x"), Fault.SYSTEM, NEVER),
        (OSError("x"), Fault.SYSTEM, NEVER),
        (MemoryError(), Fault.SYSTEM, NEVER),
        (socket.gaierror(socket.EAI_AGAIN, "x"), Fault.DNS, ALWAYS),
        (socket.gaierror(socket.EAI_NONAME, "x"), Fault.DNS, NEVER),
        (ssl.SSLCertVerificationError(1, "x"), Fault.TLS, NEVER),
        (ssl.SSLError(1, "x"), Fault.TLS, NEVER),
        (ssl.SSLEOFError(8, "x"), Fault.RESET, SAFE),
        (asyncio.IncompleteReadError(b"", 5), Fault.RESET, SAFE),
        (http.client.RemoteDisconnected("x"), Fault.RESET, SAFE),
        (http.client.BadStatusLine("x"), Fault.PROTOCOL, NEVER),
        (ValueError("x"), Fault.UNKNOWN, NEVER),
        *foreign_cases(),
    ],
    ids=repr,
)
def test_one_error(error: BaseException, fault: Fault, retry: tuple[bool, bool]) -> None:
    assert verdict(error) == (fault, *retry)


@pytest.mark.parametrize(
    ("error", "fault", "retry"),
    [
        (
            chained(CONNECT_ERROR("x"), CONNECT_ERROR("x"), ConnectionRefusedError()),
            Fault.REFUSED,
            ALWAYS,
        ),
        (chained(CONNECT_ERROR("x"), socket.gaierror(-2, "x")), Fault.DNS, NEVER),
        (chained(CONNECT_ERROR("x"), socket.gaierror(-3, "x")), Fault.DNS, ALWAYS),
        (
            chained(CONNECT_ERROR("x"), ssl.SSLCertVerificationError(1, "x")),
            Fault.TLS,
            NEVER,
        ),
        # Reset before anything was sent: the request can be tried again in any case.
        (chained(CONNECT_ERROR("x"), ConnectionResetError()), Fault.RESET, ALWAYS),
        (chained(NETWORK_ERROR("x"), ConnectionResetError()), Fault.RESET, SAFE),
        (chained(CONNECT_ERROR("x"), OSError(errno.ENETUNREACH, "")), Fault.REFUSED, ALWAYS),
        # An error that replaced a cancellation is what it says.
        (chained(NETWORK_ERROR("x"), asyncio.CancelledError()), Fault.RESET, SAFE),
        (chained(OSError("all failed"), ConnectionRefusedError()), Fault.REFUSED, ALWAYS),
        (
            chained(
                OSError("all failed"),
                ExceptionGroup("x", [ValueError(), ConnectionRefusedError()]),
            ),
            Fault.REFUSED,
            ALWAYS,
        ),
        (ExceptionGroup("x", [socket.gaierror(-3, "x")]), Fault.DNS, ALWAYS),
        (ExceptionGroup("x", [ValueError()]), Fault.UNKNOWN, NEVER),
        (
            OSError("Multiple exceptions: [Errno 111] a, [Errno 111] b"),
            Fault.REFUSED,
            ALWAYS,
        ),
        (OSError("Multiple exceptions: [Errno 111] a, [Errno 101] b"), Fault.SYSTEM, NEVER),
        # A number of its own: what was going on before is another matter.
        (chained(ValueError("x"), ConnectionRefusedError()), Fault.UNKNOWN, NEVER),
    ],
)
def test_what_an_error_was_raised_from(
    error: BaseException, fault: Fault, retry: tuple[bool, bool]
) -> None:
    assert verdict(error) == (fault, *retry)


def test_an_error_with_a_number_is_not_explained_by_what_was_handled_then() -> None:
    error = FileNotFoundError(errno.ENOENT, "x")
    error.__context__ = ConnectionRefusedError()
    assert classify(error) is Fault.SYSTEM
    hidden = NETWORK_ERROR("x")
    hidden.__context__ = socket.gaierror(-3, "x")
    assert classify(hidden) is Fault.DNS
    hidden.__suppress_context__ = True
    assert classify(hidden) is Fault.RESET


def test_cycles_and_long_chains_end() -> None:
    a, b = CONNECT_ERROR("a"), NETWORK_ERROR("b")
    a.__cause__, b.__cause__ = b, a
    assert classify(a) in (Fault.REFUSED, Fault.RESET)
    long = chained(NETWORK_ERROR("x"), *(OSError("x") for _ in range(10_000)))
    assert isinstance(classify(long), Fault)
    wide: BaseException = ConnectionRefusedError()
    for _ in range(30):
        wide = BaseExceptionGroup("x", [ValueError()] * 20 + [wide])
    assert isinstance(classify(wide), Fault)


def test_who_brought_it_about() -> None:
    assert examine(DeadlineExceeded(CAUSE)).by == "scope"
    assert examine(TimeoutError(errno.ETIMEDOUT, "x")).by == "kernel"
    assert examine(TimeoutError()).by == "library"
    assert examine(ValueError()).row == ""
    assert examine(NETWORK_ERROR("x")).row == "httpx.NetworkError"


@pytest.mark.parametrize("phase", list(Phase))
def test_a_share_that_is_spent_can_be_tried_again(phase: Phase) -> None:
    trail = Trail("orders.local:443", 0.0, 10.0)
    trail.begin(phase, 0.0)
    trail.end(2.0, Ended.TIMEOUT)
    found = examine(PhaseTimeout(trail))
    unsent = phase in (Phase.POOL, Phase.DNS, Phase.CONNECT, Phase.PROXY, Phase.TLS)
    assert (found.fault, found.by) == (Fault.TIMED_OUT, "scope")
    assert found.retry is (Retry.ALWAYS if unsent else Retry.IDEMPOTENT)


def test_subclasses_are_matched() -> None:
    class Mine(ConnectionResetError):
        pass

    class Ours(DeadlineExceeded):
        pass

    assert classify(Mine()) is Fault.RESET
    assert verdict(Ours(CAUSE)) == (Fault.TIMED_OUT, False, False)


class Status:
    def __init__(self, name: object) -> None:
        self.name = name


def rpc_error(code: Callable[[], object]) -> BaseException:
    base = type("RpcError", (Exception,), {"__module__": "grpc", "__qualname__": "RpcError"})
    members = {"__module__": "grpc.aio._call", "code": lambda self: code()}
    error: BaseException = type("AioRpcError", (base,), members)()
    return error


@pytest.mark.parametrize(
    ("name", "fault", "retry"),
    [
        ("CANCELLED", Fault.CANCELLED, NEVER),
        ("DEADLINE_EXCEEDED", Fault.TIMED_OUT, NEVER),
        ("UNAVAILABLE", Fault.RESET, SAFE),
        ("RESOURCE_EXHAUSTED", Fault.OVERLOAD, ALWAYS),
        ("UNIMPLEMENTED", Fault.PROTOCOL, NEVER),
        ("NOT_FOUND", Fault.UNKNOWN, NEVER),
        (None, Fault.UNKNOWN, NEVER),
    ],
)
def test_grpc_by_its_status(name: object, fault: Fault, retry: tuple[bool, bool]) -> None:
    assert verdict(rpc_error(lambda: Status(name))) == (fault, *retry)


def test_a_grpc_error_that_cannot_be_read() -> None:
    def broken() -> object:
        raise RuntimeError("no status yet")

    assert classify(rpc_error(broken)) is Fault.UNKNOWN


@pytest.mark.parametrize(
    ("name", "fault", "retry"),
    [
        ("asyncpg.exceptions.QueryCanceledError", Fault.TIMED_OUT, NEVER),
        ("asyncpg.exceptions.TooManyConnectionsError", Fault.OVERLOAD, ALWAYS),
        ("asyncpg.exceptions.CannotConnectNowError", Fault.REFUSED, ALWAYS),
        ("psycopg.errors.QueryCanceled", Fault.TIMED_OUT, NEVER),
        ("psycopg.errors.AdminShutdown", Fault.RESET, SAFE),
        ("sqlalchemy.exc.TimeoutError", Fault.TIMED_OUT, ALWAYS),
        ("redis.exceptions.TimeoutError", Fault.TIMED_OUT, SAFE),
        ("redis.exceptions.ConnectionError", Fault.RESET, SAFE),
        ("redis.exceptions.BusyLoadingError", Fault.OVERLOAD, ALWAYS),
        ("trio.Cancelled", Fault.CANCELLED, NEVER),
    ],
)
def test_by_name_alone(name: str, fault: Fault, retry: tuple[bool, bool]) -> None:
    module, _, cls = name.rpartition(".")
    error: BaseException = type(cls, (Exception,), {"__module__": module, "__qualname__": cls})()
    assert verdict(error) == (fault, *retry)


def test_sqlalchemy_is_looked_through() -> None:
    wrapper = type("DBAPIError", (Exception,), {"__module__": "sqlalchemy.exc"})
    inner = type("QueryCanceledError", (Exception,), {"__module__": "asyncpg.exceptions"})
    assert classify(chained(wrapper(), inner())) is Fault.TIMED_OUT
    assert classify(wrapper()) is Fault.UNKNOWN


def resolve(name: str) -> object:
    """The class with a name of the table; None when its library is not installed."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def test_the_names_of_the_table_are_real_and_each_says_something() -> None:
    seen: set[tuple[str, frozenset[int | str]]] = set()
    missing: list[str] = []
    for row in ROWS:
        # The conditions that one row sets are not set by an earlier one of the same class.
        assert (row.name, row.numbers) not in seen, row
        seen.add((row.name, row.numbers))
        try:
            importlib.import_module(row.name.partition(".")[0])
        except ImportError:
            continue
        found = resolve(row.name)
        if not isinstance(found, type) or f"{found.__module__}.{found.__qualname__}" != row.name:
            missing.append(row.name)
    assert missing == []


@given(st.sampled_from(ROWS), st.integers(-20, 150) | st.none() | st.text(max_size=5))
def test_any_error_of_the_table_has_a_fault(row: Any, first: object) -> None:
    module, _, cls = row.name.rpartition(".")
    error = type(cls, (Exception,), {"__module__": module, "__qualname__": cls})(first)
    finding = examine(error)
    assert isinstance(finding.fault, Fault)
    assert isinstance(finding.retry, Retry)
    assert finding.retry is Retry.NEVER or finding.fault not in (Fault.CANCELLED, Fault.TLS)


# Errors as the libraries raise them, against real sockets.


@pytest.fixture(scope="module")
def refused() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def slammed() -> Iterator[int]:
    """A port whose connections are closed as soon as something was sent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.recv(1)
                # Linger 0: the peer sees a reset, not an end.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


async def _aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url):
        pass


async def _httpx(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.get(url)


async def _httpx2(url: str) -> None:
    async with httpx2.AsyncClient() as client:
        await client.get(url)


CLIENTS: dict[str, tuple[object, Callable[[str], object]]] = {
    "aiohttp": (aiohttp, lambda url: asyncio.run(_aiohttp(url))),
    "httpx": (httpx, lambda url: asyncio.run(_httpx(url))),
    "httpx2": (httpx2, lambda url: asyncio.run(_httpx2(url))),
    "httpx-sync": (httpx, lambda url: httpx.get(url)),
    "requests": (requests, lambda url: requests.get(url, timeout=5)),
    "urllib3": (urllib3, lambda url: urllib3.PoolManager(retries=False).request("GET", url)),
    "urllib": (urllib.request, lambda url: urllib.request.urlopen(url, timeout=5)),
}
IDS = [name for name, (library, _) in CLIENTS.items() if library]
RUNS = [CLIENTS[name][1] for name in IDS]


@pytest.mark.parametrize("client", RUNS, ids=IDS)
def test_a_refused_connection(client: Callable[[str], object], refused: int) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        client(f"http://127.0.0.1:{refused}/")
    assert verdict(caught.value) == (Fault.REFUSED, *ALWAYS)


@pytest.mark.parametrize("client", RUNS, ids=IDS)
def test_a_connection_that_is_reset(client: Callable[[str], object], slammed: int) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        client(f"http://127.0.0.1:{slammed}/")
    assert verdict(caught.value) == (Fault.RESET, *SAFE)


@pytest.mark.parametrize("client", RUNS, ids=IDS)
@pytest.mark.parametrize(
    ("code", "retry"), [(socket.EAI_NONAME, NEVER), (socket.EAI_AGAIN, ALWAYS)]
)
def test_a_name_that_is_not_found(
    client: Callable[[str], object],
    code: int,
    retry: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def getaddrinfo(*args: object, **options: object) -> object:
        raise socket.gaierror(code, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        client("http://no-such-host.invalid/")
    assert verdict(caught.value) == (Fault.DNS, *retry)


@pytest.mark.parametrize("client", RUNS, ids=IDS)
def test_a_peer_that_speaks_no_tls(client: Callable[[str], object], slammed: int) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        client(f"https://127.0.0.1:{slammed}/")
    assert classify(caught.value) in (Fault.RESET, Fault.TLS)
