"""The dial: phases, shares, one budget, and nothing left open."""

# The block under test is what raises, and it is never a single statement.
# ruff: noqa: PT012
from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout, StreamTimeout
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import DEFAULT_SHARES, DIALLING, Ended, Phase, Shares, Trail
from holdfast.runtime.ambient import now
from holdfast.runtime.net.dial import Dialer, dial
from holdfast.runtime.net.phased import within
from holdfast.runtime.net.resolver import Resolver
from tests.runtime.dialling import (
    HELLO,
    Names,
    Observer,
    Sockets,
    contexts,
    dropping,
    loops,
    refusing,
    tls_echo,
    tls_trickle,
)
from tests.runtime.peering import ENDED, Book, echo, peer, silent

BUDGET = 0.3
HERE = Names(**{"orders.test": ("127.0.0.1",)})


def trail_of(seconds: float = NEVER, **settings: Any) -> Trail:
    """Of a longer call: the phases of HTTP are still to come."""
    settings.setdefault("floors", {})
    return Trail("GET http://orders.test/", now(), now() + seconds, Shares(**settings))


def ended(trail: Trail | None) -> list[tuple[Phase, Ended]]:
    assert trail is not None
    assert trail.current is None
    return [(step.phase, step.ended) for step in trail.steps]


# -- it works ----------------------------------------------------------------------------------


@loops
async def test_plain() -> None:
    with peer(echo) as server:
        async with await dial("localhost", server.port, timeout=ENDED) as stream:
            await stream.write(HELLO)
            assert await stream.readexactly(len(HELLO)) == HELLO


@loops
async def test_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets, observer = Sockets(monkeypatch), Observer()
    dialer = Dialer(resolver=HERE, observer=observer)  # type: ignore[arg-type]
    with peer(tls_echo) as server:
        stream = await dialer.connect(
            "orders.test", server.port, tls=contexts()[1], timeout=ENDED, client="shop"
        )
        async with stream:
            await stream.write(HELLO)
            assert await stream.readexactly(len(HELLO)) == HELLO
        assert not sockets.open()
    [(trail, error)] = observer.calls
    assert error is None
    assert ended(trail) == [(p, Ended.DONE) for p in (Phase.DNS, Phase.CONNECT, Phase.TLS)]
    assert trail.client == "shop"
    assert trail.target == f"orders.test:{server.port}"
    assert trail.route == (Phase.DNS, Phase.CONNECT, Phase.TLS)
    assert [one.result for one in trail.attempts] == ["connected"]


@loops
async def test_what_a_phase_leaves_goes_to_the_next() -> None:
    trail = trail_of(10)
    with peer(tls_echo) as server:
        stream = await Dialer(resolver=HERE).connect(  # type: ignore[arg-type]
            "orders.test", server.port, tls=contexts()[1], trail=trail
        )
        await stream.aclose()
    assert [step.phase for step in trail.steps] == [Phase.DNS, Phase.CONNECT, Phase.TLS]
    for step in trail.steps:
        later = trail.route[trail.route.index(step.phase) + 1 :]
        assert step.left == pytest.approx(10 - step.began)  # less what was used, and no more
        assert step.share == pytest.approx(trail.shares.share(step.phase, step.left, later))
    assert Phase.PROXY not in trail.route
    assert Phase.HEADER in trail.route  # what is to come after the dial is not the dial's business


@loops
async def test_a_second_dial_of_one_call_goes_another_way() -> None:
    """After a redirect: the first hop had no TLS, the second one has, and is given time for it."""
    trail = trail_of(10)
    with peer(echo) as plain, peer(tls_echo) as secret:
        dialer = Dialer(resolver=HERE)  # type: ignore[arg-type]
        await (await dialer.connect("orders.test", plain.port, trail=trail)).aclose()
        assert Phase.TLS not in trail.route
        stream = await dialer.connect("orders.test", secret.port, tls=contexts()[1], trail=trail)
        await stream.aclose()
        assert Phase.TLS in trail.route
    connect = trail.steps[3]
    assert connect.phase is Phase.CONNECT
    later = trail.route[trail.route.index(Phase.CONNECT) + 1 :]
    assert connect.share == pytest.approx(trail.shares.share(Phase.CONNECT, connect.left, later))


# -- where the time runs out -------------------------------------------------------------------


async def spent_in(
    phase: Phase, port: int, host: str = "orders.test", resolver: Any = HERE, **how: Any
) -> Trail:
    """Dial in vain, in the three ways in which the time can run out; the record of the first."""
    observer = Observer()
    dialer = Dialer(resolver=resolver, observer=observer)
    with pytest.raises(DeadlineExceeded) as whole:
        # that the connection is to be broken in the same moment makes no other error of it
        await dialer.connect(host, port, timeout=BUDGET, forced_break=True, **how)
    assert whole.value.phase is phase
    assert BUDGET <= whole.value.trail.elapsed < ENDED
    assert observer.calls == [(whole.value.trail, whole.value)]
    assert ended(whole.value.trail)[-1] == (phase, Ended.TIMEOUT)

    with pytest.raises(DeadlineExceeded) as around:
        async with holdfast.timeout(BUDGET, name="request"):
            await dialer.connect(host, port, **how)
    assert around.value.cause.scope == "request"
    assert around.value.phase is phase
    assert phase.event in str(around.value)
    assert ended(around.value.trail)[-1] == (phase, Ended.TIMEOUT)

    trail = trail_of(2 * BUDGET, bounded=[phase])  # a slow host ends in no other
    with pytest.raises(PhaseTimeout) as share:
        await dialer.connect(host, port, trail=trail, **how)
    assert share.value.trail is trail
    assert share.value.phase is phase
    assert trail.steps[-1].share <= trail.steps[-1].took < ENDED
    assert trail.steps[-1].share < 2 * BUDGET
    assert ended(trail)[-1] == (phase, Ended.TIMEOUT)
    assert holdfast.is_retryable(share.value)
    assert len(observer.calls) == 2  # a dial of a longer call is not told on its own
    assert whole.value.trail is not None
    return whole.value.trail


@pytest.mark.parametrize("resolver", [HERE, Resolver(Book({}))], ids=["for-ever", "in-time"])
@loops
async def test_a_name_that_nobody_answers_for(resolver: Any) -> None:
    """Also when the resolver itself gives up, at the very instant at which its time is over."""
    trail = await spent_in(Phase.DNS, 443, "dead.test", resolver)
    assert trail.event == "dns.resolve.timeout"
    assert "asked: 192.0.2.53" in trail.line()


@loops
async def test_a_dropped_syn(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    with dropping("127.0.0.1") as port:
        trail = await spent_in(Phase.CONNECT, port)
    assert f"127.0.0.1:{port} timeout" in trail.line()
    assert len(sockets.made) == 3
    assert not sockets.open()


@pytest.mark.parametrize("serve", [silent, tls_trickle])
@loops
async def test_a_tls_peer_that_is_silent_or_trickles(
    monkeypatch: pytest.MonkeyPatch, serve: Any
) -> None:
    sockets = Sockets(monkeypatch)
    with peer(serve) as server:
        trail = await spent_in(Phase.TLS, server.port, tls=contexts()[1])
        await asyncio.sleep(0)
        assert not sockets.open()
    assert trail.event == "tls.handshake.timeout"


@loops
async def test_no_time_no_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets, names, observer = Sockets(monkeypatch), Names(), Observer()
    dialer = Dialer(resolver=names, observer=observer)  # type: ignore[arg-type]
    for seconds in (0, -1):
        with pytest.raises(DeadlineExceeded):
            await dialer.connect("127.0.0.1", 443, timeout=seconds)
        with pytest.raises(DeadlineExceeded) as caught:
            await dialer.connect("127.0.0.1", 443, trail=trail_of(seconds))
        assert caught.value.phase is Phase.DNS
    assert names.asked == []
    assert not sockets.made
    assert [type(error) for _, error in observer.calls] == [DeadlineExceeded] * 2


@loops
async def test_a_stranger_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets, observer = Sockets(monkeypatch), Observer()
    dialer = Dialer(resolver=HERE, observer=observer)  # type: ignore[arg-type]
    with dropping("127.0.0.1") as port:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await dialer.connect("orders.test", port, timeout=60)
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)
    [(trail, error)] = observer.calls
    assert isinstance(error, asyncio.CancelledError)
    assert ended(trail)[-1] == (Phase.CONNECT, Ended.CANCELLED)
    assert trail.attempts[0].result == "cancelled"
    assert not sockets.open()


@loops
async def test_a_scope_around_is_cancelled() -> None:
    with dropping("127.0.0.1") as port, pytest.raises(holdfast.Cancelled):
        async with holdfast.timeout(60) as scope:
            asyncio.get_running_loop().call_later(0.05, scope.cancel)
            await Dialer(resolver=HERE).connect("orders.test", port)  # type: ignore[arg-type]


# -- errors ------------------------------------------------------------------------------------


@loops
async def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets, observer = Sockets(monkeypatch), Observer()
    dialer = Dialer(resolver=HERE, observer=observer)  # type: ignore[arg-type]
    with refusing() as port, pytest.raises(ConnectionRefusedError) as caught:
        await dialer.connect("orders.test", port, timeout=60)
    [(trail, error)] = observer.calls
    assert error is caught.value
    assert caught.value.__notes__ == [trail.line()]  # once, however many had it in their hands
    assert ended(trail)[-1] == (Phase.CONNECT, Ended.FAILED)
    assert not sockets.open()


@loops
async def test_a_name_that_does_not_exist() -> None:
    names = Names(**{"no.test": socket.gaierror(socket.EAI_NONAME, "'no.test' does not exist")})
    with pytest.raises(socket.gaierror) as caught:
        await Dialer(resolver=names).connect("no.test", 443, timeout=60)  # type: ignore[arg-type]
    assert "dns.resolve failed" in caught.value.__notes__[0]
    assert not holdfast.is_retryable(caught.value)


@loops
async def test_a_certificate_that_nobody_trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    with peer(tls_echo) as server:
        for context, name in ((ssl.create_default_context(), None), (contexts()[1], "other.test")):
            with pytest.raises(ssl.SSLCertVerificationError) as caught:
                await Dialer(resolver=HERE).connect(  # type: ignore[arg-type]
                    "orders.test", server.port, tls=context, server_hostname=name, timeout=60
                )
            await asyncio.sleep(0)
            assert not sockets.open()
            assert "tls.handshake failed" in caught.value.__notes__[0]
            assert holdfast.classify(caught.value) is holdfast.Fault.TLS
            assert not holdfast.is_retryable(caught.value)


@loops
async def test_a_peer_that_goes_away_in_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    with peer(lambda me, sock: None) as server:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - asyncio and uvloop differ
            await Dialer(resolver=HERE).connect(  # type: ignore[arg-type]
                "orders.test", server.port, tls=contexts()[1], timeout=60
            )
        assert not isinstance(caught.value, TimeoutError)
        await asyncio.sleep(0)
        assert not sockets.open()


@pytest.mark.parametrize("port", [0, -1, 65_536])
async def test_no_such_port(port: int) -> None:
    with pytest.raises(ValueError, match="1 to 65535"):
        await dial("127.0.0.1", port)


# -- what else there is ------------------------------------------------------------------------


@loops
async def test_a_forced_break(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    with peer(silent) as server:
        stream = await dial("127.0.0.1", server.port, timeout=BUDGET, forced_break=True)
        with pytest.raises(StreamTimeout, match="forced break"):
            await stream.read()
        await asyncio.sleep(0)
        assert not sockets.open()
        kept = await dial("127.0.0.1", server.port, timeout=BUDGET)
        await asyncio.sleep(1.2 * BUDGET)
        assert not kept.closed  # without it the limit is that of the dial alone
        kept.abort()


@loops
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        observer = Observer()
        dialer = Dialer(observer=observer)
        held = [await dialer.connect_unix(path, timeout=ENDED)]
        with pytest.raises(DeadlineExceeded) as caught:  # the queue is full
            while True:
                held.append(await dialer.connect_unix(path, timeout=BUDGET))
        assert caught.value.phase is Phase.CONNECT
        assert observer.calls[-1] == (caught.value.trail, caught.value)
        asyncio.get_running_loop().call_later(0.05, lambda: listener.accept()[0].close())
        held.append(await dialer.connect_unix(path, timeout=ENDED))  # waits for room
        for stream in held:
            stream.abort()
    with pytest.raises(FileNotFoundError, match="nobody"):
        await dialer.connect_unix(str(tmp_path / "nobody"), timeout=ENDED)


@loops
async def test_an_address_family() -> None:
    with peer(silent) as server:
        dialer = Dialer()
        trail = Trail("x", now(), NEVER, DEFAULT_SHARES, route=DIALLING)
        sock = await dialer.connect_socket(
            "localhost", server.port, trail=trail, family=socket.AF_INET
        )
        with sock:
            assert sock.family == socket.AF_INET
            assert not sock.getblocking()


# -- one phase ---------------------------------------------------------------------------------


class VirtualTrail(Trail):
    """Begun on the clock of the loop that runs."""

    def __init__(self, seconds: float, **settings: Any) -> None:
        begun = asyncio.get_running_loop().time()
        super().__init__("x", begun, begun + seconds, Shares(**settings))


async def test_the_error_of_the_work_is_not_that_of_the_time() -> None:
    trail = VirtualTrail(10)
    with pytest.raises(ZeroDivisionError):
        async with within(trail, Phase.TLS, "why"):
            raise ZeroDivisionError
    assert trail.steps[-1].ended is Ended.FAILED
    assert trail.steps[-1].detail == "why"


async def test_the_scope_around_is_spent_and_the_call_is_not() -> None:
    """A call may have more time than the place from which it is made: then that is what ended."""
    trail = VirtualTrail(100)
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(1, name="request"), within(trail, Phase.TLS):
            await asyncio.sleep(50)
    assert caught.value.cause.scope == "request"
    assert caught.value.trail is trail
    assert trail.steps[-1].ended is Ended.CANCELLED


async def test_entered_after_a_cancellation_around_it() -> None:
    trail = VirtualTrail(100)
    with pytest.raises(holdfast.Cancelled):
        async with holdfast.timeout(10) as scope:
            scope.cancel()
            async with within(trail, Phase.TLS):
                pytest.fail("it was entered")
    assert trail.steps[-1].ended is Ended.CANCELLED


async def test_entered_when_the_scope_around_is_spent() -> None:
    trail = VirtualTrail(100)
    with pytest.raises(DeadlineExceeded) as caught:
        async with holdfast.timeout(10, name="request") as scope:
            scope.move_deadline(asyncio.get_running_loop().time())
            async with within(trail, Phase.TLS):
                pytest.fail("it was entered")
    assert caught.value.cause.scope == "request"
    assert not isinstance(caught.value, PhaseTimeout)
