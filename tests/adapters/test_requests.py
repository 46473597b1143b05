"""requests and urllib3: calls that end when they must, and say in which phase they were."""

from __future__ import annotations

import contextlib
import gc
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3

import holdfast
from holdfast.adapters.requests import instrument, uninstrument
from holdfast.domain.errors import PhaseTimeout
from holdfast.domain.faults import Fault, classify, is_retryable
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.ports.lookup import Done
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import Resolver
from tests.adapters.rude import FullQueue, Rude

pytestmark = pytest.mark.system

BUDGET = 0.25
ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""

Get = Callable[..., Any]


@pytest.fixture(scope="module", name="rude")
def rude_server() -> Iterator[Rude]:
    with Rude() as rude:
        yield rude


def of_requests(**options: Any) -> tuple[Any, Get, Any]:
    session = requests.Session()
    session.trust_env = False
    instrument(session, **options)
    return session, lambda url, **kw: session.get(url, **kw).content, session.close


def of_urllib3(**options: Any) -> tuple[Any, Get, Any]:
    manager = instrument(urllib3.PoolManager(), **options)
    return manager, lambda url, **kw: manager.request("GET", url, **kw).data, manager.clear


CLIENTS = {"requests": of_requests, "urllib3": of_urllib3}


@pytest.fixture(name="client", params=CLIENTS)
def any_client(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Get]]:
    client, get, close = CLIENTS[request.param]()
    with contextlib.closing(client) if hasattr(client, "close") else contextlib.nullcontext():
        yield client, get
        close()
        gc.collect()


def late(call: Callable[[], object], *phases: Phase) -> holdfast.DeadlineExceeded:
    began = monotonic()
    with pytest.raises(holdfast.DeadlineExceeded) as caught, holdfast.timeout(BUDGET):
        call()
    assert monotonic() - began < ENDED
    error = caught.value
    assert error.phase in phases, error
    assert error.trail is not None
    assert error.trail.event == error.phase.event
    assert error.phase.event in str(error)
    assert isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)
    assert classify(error) is Fault.TIMED_OUT
    return error


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
def test_a_call_ends_with_its_budget(
    client: tuple[Any, Get], rude: Rude, path: str, phase: Phase
) -> None:
    error = late(lambda: client[1](rude.url(path)), phase)
    assert error.trail is not None
    assert error.trail.sent > 0
    if path == "/interim-flood":
        assert error.trail.interim == 103
    if "trickle" in path:
        assert error.trail.received > 0
    assert rude.settled()


def test_a_streamed_body_ends_with_the_budget_of_its_call(rude: Rude) -> None:
    session, _, close = of_requests()
    manager, _, clear = of_urllib3()
    with holdfast.timeout(BUDGET):
        first = session.get(rude.url("/body-trickle"), stream=True)
        second = manager.request("GET", rude.url("/chunk-trickle"), preload_content=False)
    for parts in (lambda: first.iter_content(1), lambda: second.stream(1)):
        began = monotonic()
        with pytest.raises(holdfast.DeadlineExceeded) as caught:
            for _ in parts():
                pass
        assert monotonic() - began < ENDED
        assert caught.value.phase is Phase.BODY
    close()
    clear()
    assert rude.settled()


def test_an_upload_that_stalls(client: tuple[Any, Get], rude: Rude) -> None:
    body = b"x" * 32 * 2**20
    send = getattr(client[0], "post", None)

    def call() -> None:
        if send is not None:
            send(rude.url("/upload"), data=body)
        else:
            client[0].request("POST", rude.url("/upload"), body=body)

    error = late(call, Phase.REQUEST)
    assert error.trail is not None
    assert 0 < error.trail.sent < len(body)
    assert rude.settled()


def test_a_peer_that_does_not_answer_a_connection(client: tuple[Any, Get]) -> None:
    with FullQueue() as full:
        error = late(lambda: client[1](f"http://127.0.0.1:{full.port}/"), Phase.CONNECT)
    assert error.trail is not None
    assert [attempt.result for attempt in error.trail.attempts][-1] == "timeout"


def test_a_tls_handshake_without_an_answer(client: tuple[Any, Get]) -> None:
    with Rude(silent_tls=True) as silent:
        late(lambda: client[1](silent.url("/")), Phase.TLS)
        assert silent.settled()


def test_a_proxy_that_never_connects(rude: Rude) -> None:
    session, _, close = of_requests()
    proxies = {"https": rude.url("/")}
    late(lambda: session.get("https://orders.invalid/", proxies=proxies), Phase.PROXY)
    close()
    manager = instrument(urllib3.ProxyManager(rude.url("/")))
    late(lambda: manager.request("GET", "https://orders.invalid/"), Phase.PROXY)
    manager.clear()
    assert rude.settled()


class Dead:
    """Nobody answers, as with a name server that is gone."""

    kinds = ("ADDRESS",)
    asks = "192.0.2.53"

    def start(self, name: str, kind: str, done: Done) -> Callable[[], object]:
        return lambda: None


@pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
def test_a_name_server_that_is_dead(make: Callable[..., tuple[Any, Get, Any]]) -> None:
    _, get, close = make(resolver=Resolver(Dead()))
    error = late(lambda: get("http://orders.internal/"), Phase.DNS)
    assert "192.0.2.53" in error.__notes__[0]
    close()


def test_redirects_share_one_budget(rude: Rude) -> None:
    _, get, close = of_requests()
    # A hop waits for its header nearly all the time; in which phase the end finds it is chance.
    error = late(lambda: get(rude.url("/redirect/0")), *Phase)
    assert error.trail is not None
    assert error.trail.redirects >= 2
    close()
    manager, _, clear = of_urllib3()
    late(lambda: manager.request("GET", rude.url("/redirect/0"), retries=50), *Phase)
    clear()


def test_a_share_that_is_spent_leaves_time_for_another_attempt() -> None:
    shares = Shares(floors={})
    for make in CLIENTS.values():
        _, get, close = make(shares=shares)
        with FullQueue() as full, holdfast.timeout(3.0):
            with pytest.raises(PhaseTimeout) as caught:
                get(
                    f"http://127.0.0.1:{full.port}/",
                    **({"retries": False} if make is of_urllib3 else {}),
                )
            assert holdfast.remaining() > 0
        assert caught.value.phase is Phase.CONNECT
        assert isinstance(caught.value, requests.ConnectTimeout | urllib3.exceptions.TimeoutError)
        assert is_retryable(caught.value, idempotent=False)
        close()


def test_time_outs_of_the_library_stay_its_own(rude: Rude) -> None:
    session, _, close = of_requests()
    with holdfast.timeout(30), pytest.raises(requests.ReadTimeout) as caught:
        session.get(rude.url("/silent"), timeout=0.2)
    assert not isinstance(caught.value, holdfast.DeadlineExceeded)
    assert "http.header.timeout" in caught.value.__notes__[0]
    with FullQueue() as full, pytest.raises(requests.ConnectTimeout):
        session.get(f"http://127.0.0.1:{full.port}/", timeout=0.2)
    with pytest.raises(requests.ConnectionError) as refused:
        session.get("http://127.0.0.1:1/")
    assert classify(refused.value) is Fault.REFUSED
    with pytest.raises(requests.ConnectionError):
        session.get("http://does-not-exist.invalid/")
    close()


def test_what_is_left_goes_out_and_is_worked_out_late(client: tuple[Any, Get], rude: Rude) -> None:
    rude.heads.clear()
    with holdfast.timeout(5.0):
        assert client[1](rude.url("/")) == b"ok"
        assert client[1](rude.url("/"), headers={"X-Envoy-Expected-Rq-Timeout-Ms": "100"}) == b"ok"
    assert client[1](rude.url("/interim")) == b"ok"
    heads = [head.lower() for head in rude.heads]
    name = "x-envoy-expected-rq-timeout-ms: "
    left = int(heads[0].partition(name)[2].partition("\r\n")[0])
    assert 3000 < left < 5000
    assert heads[1].count(name) == 1
    assert name + "100" in heads[1]
    assert name not in heads[2]


def test_too_little_is_left_to_begin(client: tuple[Any, Get], rude: Rude) -> None:
    instrument(client[0], refuse_below=1.0)
    before = len(rude.heads)
    with holdfast.timeout(0.5), pytest.raises(holdfast.InsufficientBudget) as caught:
        client[1](rude.url("/"))
    assert isinstance(caught.value, requests.Timeout | urllib3.exceptions.TimeoutError)
    assert len(rude.heads) == before


def test_a_hop_that_ran_out_of_time(client: tuple[Any, Get], rude: Rude) -> None:
    with holdfast.timeout(5.0), pytest.raises(holdfast.DeadlineExceeded) as caught:
        client[1](rude.url("/spent"))
    assert caught.value.cause.origin.hop == "orders"
    instrument(client[0], raise_for_deadline=False)
    client[1](rude.url("/spent"))


def test_connections_are_kept_and_bounds_end_with_their_calls(
    client: tuple[Any, Get], rude: Rude
) -> None:
    opened = len(rude.open)
    for _ in range(3):
        with holdfast.timeout(0.3):
            assert client[1](rude.url("/")) == b"ok"
    assert len(rude.open) <= opened + 1
    threading.Event().wait(0.35)  # the budget of the last call is over; the connection serves on
    assert client[1](rude.url("/")) == b"ok"
    assert len(rude.open) <= opened + 1


def test_every_call_is_told_with_its_phases(rude: Rude) -> None:
    told: list[tuple[Trail, BaseException | None]] = []

    class Observer:
        def call_ended(self, trail: Trail, error: BaseException | None) -> None:
            told.append((trail, error))

    for make in CLIENTS.values():
        told.clear()
        _, get, close = make(observer=Observer())
        with holdfast.timeout(5.0):
            get(rude.url("/"))
        with contextlib.suppress(holdfast.DeadlineExceeded), holdfast.timeout(0.2):
            get(rude.url("/silent"))
        close()
        good, bad = told
        assert good[1] is None
        phases = [Phase.POOL, Phase.DNS, Phase.CONNECT, Phase.REQUEST, Phase.HEADER, Phase.BODY]
        assert list(good[0].took) == phases
        assert good[0].received > 0
        assert isinstance(bad[1], holdfast.DeadlineExceeded)
        assert bad[0].event == "http.header.timeout"


def test_tls_for_real(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    with Rude(context) as rude:
        session, get, close = of_requests()
        with holdfast.timeout(10):
            assert get(rude.url("/", "localhost"), verify=str(ca)) == b"ok"
        late(lambda: get(rude.url("/body-trickle", "localhost"), verify=str(ca)), Phase.BODY)
        with pytest.raises(requests.exceptions.SSLError) as untrusted:
            session.get(rude.url("/", "localhost"))
        assert classify(untrusted.value) is Fault.TLS
        close()
        manager = instrument(urllib3.PoolManager(ca_certs=str(ca)))
        assert manager.request("GET", rude.url("/", "localhost")).data == b"ok"
        late(lambda: manager.request("GET", rude.url("/silent", "localhost")), Phase.HEADER)
        manager.clear()


def test_undone_as_if_nothing_had_been(rude: Rude) -> None:
    session = requests.Session()
    adapter: Any = session.get_adapter("http://")
    before = (dict(session.__dict__), dict(adapter.__dict__), dict(adapter.poolmanager.__dict__))
    instrument(session)
    instrument(session)  # once more does no harm
    assert uninstrument(session) is session
    assert (
        dict(session.__dict__),
        dict(adapter.__dict__),
        dict(adapter.poolmanager.__dict__),
    ) == before
    pool = urllib3.HTTPConnectionPool("127.0.0.1", rude.port)
    instrument(pool)
    late(lambda: pool.request("GET", "/silent"), Phase.HEADER)
    uninstrument(pool)
    assert "urlopen" not in vars(pool)
    pool.close()
    session.close()
    with pytest.raises(TypeError, match=r"requests\.Session"):
        instrument(object())


def test_many_threads_share_a_session(rude: Rude) -> None:
    _, get, close = of_requests()
    ends: list[str] = []

    def work(number: int) -> None:
        try:
            with holdfast.timeout(0.3 if number % 2 else 20.0):
                get(rude.url("/silent" if number % 2 else "/"))
            ends.append("done")
        except holdfast.DeadlineExceeded:
            ends.append("late")

    threads = [threading.Thread(target=work, args=[number]) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ends) == ["done"] * 20 + ["late"] * 20
    close()
    gc.collect()  # urllib3 itself leaves one connection to it, when threads share a pool
    assert rude.settled()
