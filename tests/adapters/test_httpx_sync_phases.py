"""The synchronous clients of httpx and httpx2: which phase a call was in when its time was over."""

# ruff: noqa: SIM117 - a client inside its server reads better as a block of its own

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import httpx2
import pytest
import trustme

import holdfast
from holdfast.adapters.httpx import instrument
from holdfast.domain.discovery.names import Answer
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.faults import Fault, classify, is_retryable
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.ports.lookup import Done
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import Resolver
from tests.adapters.rude import FullQueue, Rude
from tests.runtime.peering import Peer, drip, full_queue, peer

pytestmark = pytest.mark.system

BUDGET = 0.4
ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""


class Book:
    """Answers from a book, and never for a name that is not in it."""

    kinds = ("ADDRESS",)
    asks = "192.0.2.53"

    def start(self, name: str, kind: str, done: Done) -> Callable[[], object]:
        if name == "three.test":
            done(Answer(("127.0.0.1", "127.0.0.2", "127.0.0.3"), NEVER))
        return lambda: None


class Told:
    def __init__(self) -> None:
        self.calls: list[tuple[Trail, BaseException | None]] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.calls.append((trail, error))


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def lib(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", name="rude")
def rude_server() -> Iterator[Rude]:
    with Rude() as rude:
        for each in (httpx, httpx2):  # their first request imports what they need
            with each.Client(trust_env=False) as http:
                http.get(rude.url("/"))
        yield rude


@pytest.fixture(scope="module", name="authority")
def an_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(name="trusting")
def a_client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(name="server_tls")
def a_server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@contextmanager
def client(lib: Any, options: dict[str, Any] | None = None, **settings: Any) -> Iterator[Any]:
    settings = {"trust_env": False, "timeout": 30.0, **settings}
    with instrument(lib.Client(**settings), **(options or {})) as http:
        yield http


def late(lib: Any, call: Callable[[], object], phase: Phase) -> Trail:
    began = monotonic()
    with pytest.raises(lib.TimeoutException) as caught, holdfast.timeout(BUDGET, name="job"):
        call()
    assert BUDGET - 0.02 <= monotonic() - began < ENDED
    error = caught.value
    assert isinstance(error, holdfast.DeadlineExceeded)
    assert error.phase is phase, error.trail
    assert error.trail.event == phase.event
    assert error.trail.client == lib.__name__
    assert error.trail.line() in error.__notes__
    assert error.cause.scope.startswith("job/")
    assert error.cause.detail.startswith("while ") == (phase in (Phase.HEADER, Phase.BODY))
    assert classify(error) is Fault.TIMED_OUT
    return error.trail


@pytest.mark.parametrize(
    ("path", "phase"),
    [
        ("/silent", Phase.HEADER),
        ("/header-trickle", Phase.HEADER),
        ("/interim-flood", Phase.HEADER),
        ("/body-trickle", Phase.BODY),
        ("/chunk-trickle", Phase.BODY),
    ],
)
def test_an_answer_that_never_ends(lib: Any, rude: Rude, path: str, phase: Phase) -> None:
    with client(lib) as http:
        trail = late(lib, lambda: http.get(rude.url(path)), phase)
        assert trail.sent > 0
        assert (trail.received > 0) == (path != "/silent")
        assert trail.interim == (103 if path == "/interim-flood" else 0)
        assert not http._transport.inner._pool.connections
    assert rude.settled()


def test_an_upload_that_nobody_takes(lib: Any, rude: Rude) -> None:
    body = b"x" * 32 * 2**20
    with client(lib) as http:
        trail = late(lib, lambda: http.post(rude.url("/upload"), content=body), Phase.REQUEST)
        assert 0 < trail.sent < len(body)
    assert rude.settled()


def test_a_name_server_that_is_dead(lib: Any) -> None:
    with client(lib, {"resolver": Resolver(Book())}) as http:
        trail = late(lib, lambda: http.get("http://orders.internal/"), Phase.DNS)
    assert "192.0.2.53" in trail.line()


def test_one_address_that_does_not_answer(lib: Any) -> None:
    with FullQueue() as full, client(lib) as http:
        trail = late(lib, lambda: http.get(f"http://127.0.0.1:{full.port}/"), Phase.CONNECT)
    assert [one.result for one in trail.attempts] == ["timeout"]


def test_three_addresses_that_do_not_answer(lib: Any) -> None:
    with full_queue("0.0.0.0") as port, client(lib, {"resolver": Resolver(Book())}) as http:
        trail = late(lib, lambda: http.get(f"http://three.test:{port}/"), Phase.CONNECT)
    assert 2 <= len(trail.attempts) <= 3  # a thread that is kept waiting does not get to the third


def test_a_tls_handshake_without_an_answer(lib: Any) -> None:
    with Rude(silent_tls=True) as silent, client(lib) as http:
        late(lib, lambda: http.get(silent.url("/")), Phase.TLS)
        assert silent.settled()


def test_a_tls_handshake_that_trickles(lib: Any) -> None:
    def trickle(me: Peer, sock: socket.socket) -> None:
        sock.sendall(b"\x16\x03\x03\x40\x00")
        drip(me, sock)

    with peer(trickle) as server, client(lib) as http:
        late(lib, lambda: http.get(f"https://127.0.0.1:{server.port}/"), Phase.TLS)


def test_a_proxy_that_never_connects(lib: Any, rude: Rude) -> None:
    with client(lib, proxy=rude.url("/")) as http:
        trail = late(lib, lambda: http.get("https://orders.invalid/"), Phase.PROXY)
    assert f"via 127.0.0.1:{rude.port}" in trail.target
    assert rude.settled()


def test_a_proxy_that_is_spoken_to_by_tls(
    lib: Any, server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    def tunnel(me: Peer, sock: socket.socket) -> None:
        with server_tls.wrap_socket(sock, server_side=True) as tls:
            while b"\r\n\r\n" not in tls.recv(4096):
                pass
            tls.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            tls.recv(4096)
            tls.sendall(b"\x16\x03\x03\x40\x00")
            drip(me, tls)  # a handshake inside of TLS, byte by byte

    with peer(tunnel) as server:
        proxy = lib.Proxy(f"https://127.0.0.1:{server.port}", ssl_context=trusting)
        with client(lib, proxy=proxy, verify=trusting) as http:
            late(lib, lambda: http.get("https://orders.invalid/"), Phase.TLS)


def test_a_place_in_the_pool(lib: Any, rude: Rude) -> None:
    with client(lib, limits=lib.Limits(max_connections=1)) as http:
        with http.stream("GET", rude.url("/body-trickle")):
            late(lib, lambda: http.get(rude.url("/")), Phase.POOL)


def test_redirects_share_one_budget(lib: Any, rude: Rude) -> None:
    with client(lib, follow_redirects=True) as http:
        # In which phase of which hop is a matter of chance.
        with pytest.raises(holdfast.DeadlineExceeded) as caught, holdfast.timeout(BUDGET):
            http.get(rude.url("/redirect/0"))
    assert caught.value.trail is not None
    assert caught.value.trail.redirects >= 1


def test_attempts_of_the_transport_share_one_budget(lib: Any) -> None:
    transport = lib.HTTPTransport(retries=20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with client(lib, transport=transport) as http:
        began = monotonic()
        with pytest.raises((lib.TransportError, holdfast.DeadlineExceeded)):
            with holdfast.timeout(BUDGET):
                http.get(f"http://127.0.0.1:{port}/")
        assert monotonic() - began < ENDED


# -- shares ----------------------------------------------------------------------------------------


def test_a_share_that_is_spent_leaves_time_for_another_attempt(lib: Any) -> None:
    with FullQueue() as full, client(lib, {"shares": Shares(floors={})}) as http:
        with holdfast.timeout(3.0), pytest.raises(PhaseTimeout) as caught:
            http.get(f"http://127.0.0.1:{full.port}/")
    assert caught.value.phase is Phase.CONNECT
    assert isinstance(caught.value, lib.ConnectTimeout)
    assert is_retryable(caught.value, idempotent=False)


def test_any_phase_can_be_bounded(lib: Any, rude: Rude) -> None:
    weights = {Phase.HEADER: 0.1, Phase.BODY: 1.0}
    shares = Shares(weights=weights, floors={}, bounded=(Phase.HEADER,))
    with client(lib, {"shares": shares}) as http:
        began = monotonic()
        with holdfast.timeout(4.0), pytest.raises(PhaseTimeout) as caught:
            http.get(rude.url("/header-trickle"))
        assert monotonic() - began < 3.0
        # The last phase may take all that is left.
        late(lib, lambda: http.get(rude.url("/body-trickle")), Phase.BODY)
    assert caught.value.phase is Phase.HEADER
    assert isinstance(caught.value, lib.ReadTimeout)


# -- the rest --------------------------------------------------------------------------------------


def test_time_outs_of_the_library_stay_its_own(lib: Any, rude: Rude) -> None:
    with client(lib, timeout=lib.Timeout(0.2)) as http, FullQueue() as full:
        for url, kind, event in (
            (rude.url("/silent"), lib.ReadTimeout, "http.header.timeout"),
            (f"http://127.0.0.1:{full.port}/", lib.ConnectTimeout, "tcp.connect.timeout"),
        ):
            for budget in (30.0, NEVER):
                with holdfast.timeout(budget), pytest.raises(kind) as caught:
                    http.get(url)
                assert not isinstance(caught.value, holdfast.DeadlineExceeded | PhaseTimeout)
                assert caught.value.trail.event == event
                assert event in caught.value.__notes__[-1]


def test_other_errors_stay_what_they_are(lib: Any, server_tls: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with client(lib) as http:
        with holdfast.timeout(10), pytest.raises(lib.ConnectError) as refused:
            http.get(f"http://127.0.0.1:{port}/")
        assert classify(refused.value) is Fault.REFUSED
        assert "tcp.connect failed" in refused.value.__notes__[-1]
        with Rude(server_tls) as rude, pytest.raises(lib.ConnectError) as untrusted:
            http.get(rude.url("/"))
        assert classify(untrusted.value) is Fault.TLS


def test_tls_for_real_and_the_connection_is_kept(
    lib: Any, server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    with Rude(server_tls) as rude, client(lib, verify=trusting) as http:
        for _ in range(3):
            with holdfast.timeout(10):
                response = http.get(rude.url("/", "localhost"))
            assert response.text == "ok"
        stream = response.extensions["network_stream"]
        assert stream.get_extra_info("ssl_object").version().startswith("TLS")
        assert stream.get_extra_info("server_addr")[1] == rude.port
        assert len(http._transport.inner._pool.connections) == 1
        late(lib, lambda: http.get(rude.url("/body-trickle", "localhost")), Phase.BODY)


def test_a_unix_socket(lib: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        with client(lib, transport=lib.HTTPTransport(uds=path)) as http:
            trail = late(lib, lambda: http.get("http://orders.local/"), Phase.HEADER)
    assert Phase.CONNECT in trail.took
    assert Phase.DNS not in trail.took


def test_every_call_is_told_once(lib: Any, rude: Rude) -> None:
    told = Told()
    with client(lib, {"observer": told}) as http:
        with holdfast.timeout(5.0):
            http.get(rude.url("/"))
            with http.stream("GET", rude.url("/")) as response:
                assert len(told.calls) == 1  # the body is not read
                response.read()
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.2):
            http.get(rude.url("/silent"))
        with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.2):
            http.get(rude.url("/body-trickle"))
    (first, none), (second, nor), (_, error), (trail, other) = told.calls
    assert none is nor is None
    assert list(first.took) == [
        Phase.POOL,
        Phase.DNS,
        Phase.CONNECT,
        Phase.REQUEST,
        Phase.HEADER,
        Phase.BODY,
    ]
    assert Phase.CONNECT not in second.took
    assert second.received > 0
    assert isinstance(error, holdfast.DeadlineExceeded)
    assert isinstance(other, holdfast.DeadlineExceeded)
    assert trail.event == "http.body.timeout"


def test_what_is_left_is_worked_out_late(lib: Any, rude: Rude) -> None:
    class Slow(Book):
        def start(self, name: str, kind: str, done: Done) -> Callable[[], object]:
            timer = threading.Timer(0.3, done, [Answer(("127.0.0.1",), NEVER)])
            timer.start()
            return timer.cancel

    rude.heads.clear()
    with client(lib, {"resolver": Resolver(Slow())}) as http, holdfast.timeout(5.0):
        http.get(f"http://slow.test:{rude.port}/")
    field = "x-envoy-expected-rq-timeout-ms: "
    left = int(rude.heads[0].lower().partition(field)[2].partition("\r\n")[0])
    assert 2000 < left < 4705


def test_nothing_is_left_open(lib: Any, rude: Rude) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with client(lib) as http, FullQueue() as full:
        for url in (
            rude.url("/silent"),
            rude.url("/body-trickle"),
            f"http://127.0.0.1:{full.port}",
        ):
            with pytest.raises(holdfast.DeadlineExceeded), holdfast.timeout(0.1):
                http.get(url)
    assert rude.settled()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_many_threads_share_a_client(lib: Any, rude: Rude) -> None:
    ends: list[str] = []

    def work(number: int) -> None:
        try:
            with holdfast.timeout(0.3 if number % 2 else 20.0):
                http.get(rude.url("/silent" if number % 2 else "/"))
            ends.append("done")
        except holdfast.DeadlineExceeded:
            ends.append("late")

    with client(lib) as http:
        threads = [threading.Thread(target=work, args=[number]) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(ends) == ["done"] * 12 + ["late"] * 12
    assert rude.settled()


def test_a_network_of_somebody_else_is_bounded(lib: Any, rude: Rude) -> None:
    with client(lib) as plain:
        backend = plain._transport.inner._pool._network_backend.inner
    transport = lib.HTTPTransport()
    transport._pool._network_backend = type("Own", (type(backend),), {})()
    with client(lib, transport=transport) as http:
        assert http.get(rude.url("/")).text == "ok"
        late(lib, lambda: http.get(rude.url("/header-trickle")), Phase.HEADER)
        with Rude(silent_tls=True) as silent:
            late(lib, lambda: http.get(silent.url("/")), Phase.TLS)
