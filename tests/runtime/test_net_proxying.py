"""Proxies that CONNECT, that say no, that say nonsense, and that never stop."""

from __future__ import annotations

import asyncio
import errno
import ssl
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout
from holdfast.domain.phases import Ended, Phase, Shares, Trail
from holdfast.runtime.ambient import now
from holdfast.runtime.net.dial import Dialer, dial
from holdfast.runtime.net.proxying import ProxyAddress, connect_request, over, refusal
from tests.runtime.dialling import (
    HELLO,
    Names,
    Sockets,
    answering,
    contexts,
    dropping,
    endless,
    loops,
    refusing,
    tls_echo,
    tunnel,
)
from tests.runtime.peering import ENDED, echo, peer, silent

BUDGET = 0.3
SECRET = ("Proxy-Authorization", "Basic c2VjcmV0")
PROXY = ProxyAddress("proxy.test", 3128, [SECRET])
OK = b"HTTP/1.1 200 OK\r\n\r\n"


def through(port: int, **how: Any) -> ProxyAddress:
    return ProxyAddress("127.0.0.1", port, [SECRET], **how)


# -- it works ----------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("near", [False, True], ids=["proxy", "tls-proxy"])
@loops
async def test_a_tunnel(monkeypatch: pytest.MonkeyPatch, secret: bool, near: bool) -> None:
    client = contexts()[1]
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    trail = Trail("x", now(), now() + 60)
    sockets = Sockets(monkeypatch)
    with peer(tls_echo if secret else echo) as host, peer(tunnel(tls=near, interim=interim)) as way:
        stream = await Dialer().connect(
            "127.0.0.1",
            host.port,
            tls=client if secret else None,
            proxy=through(way.port, tls=client if near else None),
            trail=trail,
        )
        async with stream:
            await stream.write(HELLO)
            assert await stream.readexactly(len(HELLO)) == HELLO
        target = f"127.0.0.1:{host.port}"
        lines = way.seen[0].split("\r\n")
    assert lines[:3] == [f"CONNECT {target} HTTP/1.1", f"Host: {target}", ": ".join(SECRET)]
    phases = [Phase.DNS, Phase.CONNECT, Phase.PROXY, *[Phase.TLS] * secret]
    assert [(step.phase, step.ended) for step in trail.steps] == [(p, Ended.DONE) for p in phases]
    assert not sockets.open()


@loops
async def test_what_the_host_says_first_is_not_lost() -> None:
    with peer(answering(OK + HELLO)) as way:
        async with await dial("db.test", 5432, proxy=through(way.port), timeout=ENDED) as stream:
            assert await stream.readexactly(len(HELLO)) == HELLO


# -- it does not -------------------------------------------------------------------------------


@loops
async def test_a_silent_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    with peer(silent) as way:
        with pytest.raises(DeadlineExceeded) as caught:
            await dial("orders.test", 443, proxy=through(way.port), timeout=BUDGET)
        trail = Trail("x", now(), now() + 2 * BUDGET, Shares(floors={}))
        with pytest.raises(PhaseTimeout) as share:
            await Dialer().connect("orders.test", 443, proxy=through(way.port), trail=trail)
        await asyncio.sleep(0)
        assert not sockets.open()
    assert caught.value.phase is share.value.phase is Phase.PROXY
    assert trail.event == "proxy.connect.timeout"
    assert f"proxy 127.0.0.1:{way.port}" in str(share.value)
    assert SECRET[1] not in str(share.value) + repr(share.value)


@loops
async def test_a_proxy_that_is_not_there() -> None:
    """Not reached is another phase than not answered."""
    names = Names(**{"proxy.test": ("127.0.0.1",)})
    dialer = Dialer(resolver=names)  # type: ignore[arg-type]
    with refusing() as port, pytest.raises(ConnectionRefusedError) as refused:
        await dialer.connect("orders.test", 443, proxy=ProxyAddress("proxy.test", port))
    assert "tcp.connect failed" in refused.value.__notes__[0]
    with dropping("127.0.0.1") as port, pytest.raises(DeadlineExceeded) as caught:
        await dialer.connect(
            "orders.test", 443, proxy=ProxyAddress("proxy.test", port), timeout=BUDGET
        )
    assert caught.value.phase is Phase.CONNECT
    assert names.asked == ["proxy.test"] * 2  # the host is for the proxy to look up


@pytest.mark.parametrize(
    ("serve", "error", "text", "again"),
    [
        (
            answering(b"HTTP/1.1 407 Proxy Authentication Required\r\nX: y\r\n\r\n"),
            PermissionError,
            "'407 Proxy Authentication Required'",
            False,
        ),
        (answering(b"HTTP/1.0 403 No\r\n\r\n"), PermissionError, "'403 No'", False),
        (answering(b"HTTP/1.1 502 Bad\r\n\r\n"), ConnectionRefusedError, "'502 Bad'", True),
        (answering(b"HTTP/1.1 503\n\n"), ConnectionRefusedError, "'503'", True),
        (answering(b"HTTP/1.1 101 Switch\r\n\r\n"), ConnectionRefusedError, "'101 ", True),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), OSError, "not HTTP/1.1: 'SSH-2.0", False),
        (answering(b"\x15\x03\x01\x00\x02\x02\x46"), OSError, "does it speak TLS?", False),
        (answering(b"HTTP/1.1 2\xb20 OK\r\n\r\n"), OSError, "not HTTP/1.1", False),
        (answering(b"HTTP/2 200\r\n\r\n"), OSError, "not HTTP/1.1", False),
        (answering(b"HTTP/\r\n\r\n"), OSError, "not HTTP/1.1", False),
        (endless(b"X-Padding: more of it\r\n"), OSError, "more than 16384 bytes", False),
        (endless(b"and no line ends "), OSError, "more than 16384 bytes", False),
        (
            answering(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 40),
            OSError,
            "interim responses without an end",
            False,
        ),
        (answering(end=True), ConnectionResetError, "closed before it had answered", True),
        (answering(b"HT", end=True), ConnectionResetError, "closed before", True),
        (answering(OK[:-2], end=True), ConnectionResetError, "closed before", True),
    ],
)
@loops
async def test_a_proxy_that_says_no_or_nonsense(
    monkeypatch: pytest.MonkeyPatch,
    serve: Any,
    error: type[OSError],
    text: str,
    again: bool,
) -> None:
    sockets = Sockets(monkeypatch)
    with peer(serve) as way:
        with pytest.raises(error, match=text) as caught:
            await dial("orders.test", 443, proxy=through(way.port), timeout=60)
        await asyncio.sleep(0)
        assert not sockets.open()
    assert not isinstance(caught.value, TimeoutError)
    assert "proxy.connect failed" in caught.value.__notes__[0]
    assert holdfast.is_retryable(caught.value, idempotent=True) is again
    assert SECRET[1] not in "\n".join([str(caught.value), *caught.value.__notes__])


@loops
async def test_a_tunnel_that_is_not_fit_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    for serve, text in (
        (answering(OK + b"220 smtp ready\r\n"), "sent plain bytes into the tunnel"),
        (answering(OK, end=True), None),  # told by the tunnel or by the handshake
    ):
        with peer(serve) as way:
            with pytest.raises(OSError, match=text) as caught:
                await dial("127.0.0.1", 443, tls=contexts()[1], proxy=through(way.port), timeout=60)
            assert not isinstance(caught.value, TimeoutError)
            await asyncio.sleep(0)
            assert not sockets.open()


@loops
async def test_the_certificate_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    with peer(tunnel(tls=True)) as way:
        stranger = through(way.port, tls=ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await dial("orders.test", 443, proxy=stranger, timeout=60)
        await asyncio.sleep(0)
        assert not sockets.open()
    assert "proxy.connect failed" in caught.value.__notes__[0]


def _not_about_abort(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert "_abort() takes" in str(context.get("exception")), context


@loops
async def test_the_certificate_of_the_host_behind_a_tls_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In TLS within TLS, asyncio before 3.11.8 and 3.12.2 hides the error behind one of its own,
    and complains about it to the loop as well."""
    asyncio.get_running_loop().set_exception_handler(_not_about_abort)
    sockets = Sockets(monkeypatch)
    client = contexts()[1]
    with peer(tls_echo) as host, peer(tunnel(tls=True)) as way:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await dial(
                "127.0.0.1",
                host.port,
                tls=client,
                server_hostname="other.test",
                proxy=through(way.port, tls=client),
                timeout=60,
            )
        await asyncio.sleep(0)
        assert not sockets.open()
    assert "tls.handshake failed" in caught.value.__notes__[0]
    assert not holdfast.is_retryable(caught.value)


# -- what is sent, and how answers are read ----------------------------------------------------


def test_what_a_proxy_is_asked() -> None:
    assert (
        connect_request("::1", 443, []) == b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n"
    )
    assert connect_request("bücher.test", 80, []).startswith(b"CONNECT xn--bcher-kva.test:80 ")
    assert repr(PROXY) == "ProxyAddress('proxy.test', 3128)"
    assert str(ProxyAddress("::1", 3128)) == "[::1]:3128"


@pytest.mark.parametrize(
    ("host", "header"),
    [
        ("a.test HTTP/1.1\r\nX: y", ("A", "b")),
        ("a.test evil", ("A", "b")),
        ("a.test\x00", ("A", "b")),
        ("a.test", ("A", "b\r\nX: y")),
        ("a.test", ("A\n", "b")),
    ],
)
def test_nothing_is_smuggled_into_the_request(host: str, header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"space|line break"):
        connect_request(host, 443, [header])


@loops
async def test_a_request_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    with peer(silent) as way:
        with pytest.raises(ValueError, match="line break"):
            await dial("orders.test", 443, proxy=ProxyAddress("127.0.0.1", way.port, [("A", "\n")]))
        await asyncio.sleep(0)
        assert not sockets.open()


@given(st.integers(0, 999), st.text(st.characters(codec="latin-1", exclude_characters="\n")))
def test_every_status(code: int, reason: str) -> None:
    said = refusal(f"HTTP/1.1 {code:03} {reason}\r\n\r\n".encode("latin-1"), PROXY, "x:1")
    match code // 100:
        case 2:
            assert said is None
        case 1 if code != 101:
            assert said == code
        case 4:
            assert isinstance(said, PermissionError)
        case _:
            assert isinstance(said, ConnectionRefusedError)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_harm(head: bytes) -> None:
    said = refusal(head, PROXY, "orders.test:443")
    if not head.startswith(b"HTTP/1."):
        assert isinstance(said, OSError)
        assert said.errno == errno.EPROTO
        assert len(str(said)) < 500


@given(st.binary(max_size=8))
def test_any_status_is_read_without_harm(rest: bytes) -> None:
    refusal(b"HTTP/1.1 " + rest + b"\r\n\r\n", PROXY, "orders.test:443")


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\n\r\n"])
def test_a_head_is_over_at_its_empty_line(end: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nVia: me" + end
    assert [over(head[:size]) for size in range(len(head) + 1)] == [False] * len(head) + [True]


@given(st.binary(max_size=20).filter(lambda head: not head.startswith(b"HTTP/")))
def test_what_is_no_http_is_over_after_five_bytes(head: bytes) -> None:
    assert over(head) is (len(head) >= 5)
