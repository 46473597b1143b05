"""The race to the first address: pace, record, errors, and what is left of it."""

from __future__ import annotations

import asyncio
import errno
import socket
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import holdfast
from holdfast.domain.errors import DeadlineExceeded, PhaseTimeout
from holdfast.domain.instant import NEVER
from holdfast.domain.phases import Phase, Shares, Trail
from holdfast.runtime.driver import driver_of
from holdfast.runtime.net import attempt, race
from holdfast.runtime.net.attempt import SocketOptions, begun, failed, paced, verdict
from holdfast.runtime.net.race import connected, interleaved
from tests.runtime.dialling import Sockets, addresses, dropping, loops, refusing
from tests.runtime.peering import ENDED, peer, silent

OPTIONS = SocketOptions()


def now() -> float:
    return driver_of(asyncio.get_running_loop()).now()


def trail_of(seconds: float = NEVER, **settings: Any) -> Trail:
    return Trail("orders.test", now(), now() + seconds, Shares(**settings))


def results(trail: Trail) -> list[tuple[str, str]]:
    return [(one.address.rsplit(":", 1)[0], one.result) for one in trail.attempts]


@loops
async def test_these_tests_run_on_the_loops_that_they_name(request: pytest.FixtureRequest) -> None:
    named = request.node.callspec.params["holdfast_loop"]
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == named


# -- pace and order ----------------------------------------------------------------------------


@given(st.integers(2, 20), st.floats(0.4, 1e4))
def test_every_address_gets_its_tenth_of_a_second(count: int, left: float) -> None:
    delay = paced(0.25, count, left)
    assert 0.01 <= delay <= 0.25
    assert (count - 1) * delay + 0.1 <= left + 1e-9 or delay == 0.01


def test_without_a_limit_the_pace_is_the_usual_one() -> None:
    assert paced(0.25, 9, NEVER) == 0.25
    assert paced(0.25, 1, 0.01) == 0.25


@given(st.lists(st.sampled_from(["v4", "v6"]), max_size=12))
def test_families_take_turns(families: list[str]) -> None:
    given_ = [
        addresses(n + 1, "127.0.0.1" if family == "v4" else "::1")[0]
        for n, family in enumerate(families)
    ]
    mixed = interleaved(given_)
    assert sorted(mixed) == sorted(given_)
    assert mixed[:1] == given_[:1]
    for family in (socket.AF_INET, socket.AF_INET6):  # among their own they keep their order
        assert [a for a in mixed if a.family == family] == [a for a in given_ if a.family == family]
    both = 2 * min(families.count("v4"), families.count("v6"))
    for one, two in zip(mixed[:both:2], mixed[1:both:2], strict=True):
        assert one.family != two.family


@loops
async def test_the_second_address_is_there_after_a_quarter_of_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets = Sockets(monkeypatch)
    with dropping("127.0.0.2") as port, peer(silent, port=port):
        trail = trail_of()
        sock = await connected(
            addresses(port, "127.0.0.2", "127.0.0.1"), trail=trail, options=OPTIONS
        )
        with sock:
            assert sock.getpeername() == ("127.0.0.1", port)
            assert sockets.open() == [sock]  # that of the loser is closed already
    assert results(trail) == [("127.0.0.1", "connected"), ("127.0.0.2", "cancelled")]
    good, dead = trail.attempts
    assert good.began - dead.began >= 0.25


@loops
async def test_three_addresses_that_drop_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    with dropping(*hosts) as port:
        trail = trail_of(0.5)
        with pytest.raises(DeadlineExceeded) as caught:
            await connected(addresses(port, *hosts), trail=trail, options=OPTIONS)
    assert caught.value.trail is trail
    assert trail.event == "tcp.connect.timeout"
    assert 0.5 <= trail.elapsed < ENDED
    assert results(trail) == [(host, "timeout") for host in hosts]
    for one, other in zip(trail.attempts, trail.attempts[1:], strict=False):
        assert other.began - one.began >= 0.1  # one after the other, and the last in time
    assert not sockets.open()


@loops
async def test_a_full_queue_ends_with_the_share() -> None:
    with dropping("127.0.0.1") as port:
        trail = trail_of(2.0, floors={})
        with pytest.raises(PhaseTimeout) as caught:
            await connected(addresses(port, "127.0.0.1"), trail=trail, options=OPTIONS)
    assert caught.value.phase is Phase.CONNECT
    assert f"127.0.0.1:{port} timeout" in str(caught.value)
    assert not trail.spent(trail.begun + trail.elapsed)
    assert holdfast.classify(caught.value) is holdfast.Fault.TIMED_OUT
    assert holdfast.is_retryable(caught.value)


# -- errors ------------------------------------------------------------------------------------


@loops
async def test_a_refusal_is_told_at_once_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    asked: list[int] = []
    plain = verdict

    def counted(sock: socket.socket) -> int:
        asked.append(plain(sock))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # a second reading: gone
        return asked[-1]

    monkeypatch.setattr(race, "verdict", counted)
    with refusing() as port:
        trail = trail_of(30)
        with pytest.raises(ConnectionRefusedError) as caught:
            await connected(addresses(port, "127.0.0.1"), trail=trail, options=OPTIONS)
    assert caught.value.errno == errno.ECONNREFUSED
    assert asked == [errno.ECONNREFUSED]
    assert results(trail) == [("127.0.0.1", "connection refused")]
    assert trail.elapsed < ENDED
    assert not sockets.open()


@loops
async def test_a_socket_that_is_connected_to_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets = Sockets(monkeypatch)
    plain = socket.socket.connect_ex

    def from_the_same_port(sock: socket.socket, address: Any) -> int:
        sock.bind(address)
        return plain(sock, address)

    with refusing() as port:
        pass
    monkeypatch.setattr(socket.socket, "connect_ex", from_the_same_port)
    trail = trail_of(30)
    with pytest.raises(ConnectionRefusedError):
        await connected(addresses(port, "127.0.0.1"), trail=trail, options=OPTIONS)
    assert results(trail) == [("127.0.0.1", "connection refused")]
    assert sockets.made
    assert not sockets.open()


@loops
async def test_after_a_refusal_the_next_one_does_not_wait() -> None:
    with refusing() as bad, peer(silent) as good:
        trail = trail_of()
        both = addresses(bad, "127.0.0.1") + addresses(good.port, "127.0.0.1")
        slow = SocketOptions(attempt_delay=3600)
        (await connected(both, trail=trail, options=slow)).close()
    assert [one.result for one in trail.attempts] == ["connection refused", "connected"]


@loops
async def test_one_at_a_time_when_nobody_wants_a_race() -> None:
    with refusing() as bad, peer(silent) as good:
        both = addresses(bad, "127.0.0.1") + addresses(good.port, "127.0.0.1")
        alone = SocketOptions(attempt_delay=NEVER)
        (await connected(both, trail=trail_of(), options=alone)).close()


@loops
async def test_thousands_of_addresses_that_fail_at_once() -> None:
    trail = trail_of(30)
    with pytest.raises(OSError, match=r"and 2992 more") as caught:
        await connected(addresses(9, *["255.255.255.255"] * 3000), trail=trail, options=OPTIONS)
    assert caught.value.errno == errno.ENETUNREACH


@loops
async def test_a_socket_that_cannot_be_made_costs_its_address_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []

    def make(*arguments: Any) -> socket.socket:
        made.append(arguments)
        if len(made) == 2:  # not in the task that waits, but in a callback of the loop
            raise OSError(errno.EMFILE, "Too many open files")
        return socket.socket(*arguments)

    shim = types.SimpleNamespace(**{**vars(socket), "socket": make})
    monkeypatch.setattr(attempt, "socket", shim)
    quick = SocketOptions(attempt_delay=0.02)
    with dropping("127.0.0.2") as port, peer(silent, port=port):
        trail = trail_of(30)
        where = addresses(port, "127.0.0.2", "127.0.0.3", "127.0.0.1")
        (await connected(where, trail=trail, options=quick)).close()
    assert results(trail)[:2] == [("127.0.0.3", "too many open files"), ("127.0.0.1", "connected")]


@loops
async def test_an_address_that_makes_no_sense_ends_the_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sockets = Sockets(monkeypatch)
    quick = SocketOptions(attempt_delay=0.02)
    with dropping("127.0.0.1") as port:
        where = addresses(port, "127.0.0.1") + addresses(99_999, "127.0.0.1")
        with pytest.raises(OverflowError, match="port"):
            await connected(where, trail=trail_of(30), options=quick)
    assert not sockets.open()


async def test_no_address_at_all() -> None:
    with pytest.raises(ValueError, match=r"no address of orders\.test"):
        await connected([], trail=trail_of(30), options=OPTIONS)


def test_the_most_telling_number() -> None:
    six, four = addresses(443, "2001:db8::1", "192.0.2.1")
    missing = (six, errno.ENETUNREACH)
    assert isinstance(failed("x", [missing, (four, errno.ECONNREFUSED)]), ConnectionRefusedError)
    assert failed("x", [missing, (four, errno.ETIMEDOUT)]).errno == errno.ETIMEDOUT
    assert failed("x", [(six, errno.EAFNOSUPPORT), missing]).errno == errno.ENETUNREACH
    full = failed("x", [missing, (four, errno.EMFILE), (four, errno.ECONNREFUSED)])
    assert full.errno == errno.EMFILE
    text = str(failed("orders.test:443", [missing, (four, errno.EACCES)]))
    assert "cannot connect to orders.test:443" in text
    assert "[2001:db8::1]:443: Network is unreachable" in text
    assert "192.0.2.1:443: Permission denied" in text


# -- a moment too late -------------------------------------------------------------------------


@loops
async def test_a_cancellation_in_the_turn_of_the_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = Sockets(monkeypatch)
    loop = asyncio.get_running_loop()

    def told(sock: socket.socket) -> int:
        loop.call_soon(task.cancel)  # runs before the task is told of the winner
        return verdict(sock)

    monkeypatch.setattr(race, "verdict", told)
    with peer(silent) as server:
        trail = trail_of(30)
        dial = connected(addresses(server.port, "127.0.0.1"), trail=trail, options=OPTIONS)
        task = asyncio.create_task(dial)
        await asyncio.wait([task])
        assert task.cancelled()
        assert not sockets.open()
    assert results(trail) == [("127.0.0.1", "connected")]


@loops
async def test_a_cancellation_in_the_turn_of_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    def told(sock: socket.socket) -> int:
        loop.call_soon(task.cancel)
        return verdict(sock)

    monkeypatch.setattr(race, "verdict", told)
    with refusing() as port:
        dial = connected(addresses(port, "127.0.0.1"), trail=trail_of(30), options=OPTIONS)
        task = asyncio.create_task(dial)
        await asyncio.wait([task])
        assert task.cancelled()


@pytest.mark.parametrize("whole", [False, True])
@loops
async def test_connected_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """The whole decides: what is done counts, even when the loop saw too late that it is."""
    sockets = Sockets(monkeypatch)
    weights = {phase: 0.2 / 30 if phase is Phase.CONNECT else 1.0 for phase in Phase}
    trail = trail_of(0.2 if whole else 30, floors={}, weights=weights)
    trail.route = (Phase.CONNECT,) if whole else (Phase.CONNECT, Phase.BODY)

    def slowly(sock: socket.socket) -> int:
        until = now() + 0.21
        while now() < until:
            pass  # the loop is held up
        return verdict(sock)

    monkeypatch.setattr(race, "verdict", slowly)
    with peer(silent) as server:
        dial = connected(addresses(server.port, "127.0.0.1"), trail=trail, options=OPTIONS)
        if whole:
            with pytest.raises(DeadlineExceeded) as caught:
                await dial
            assert caught.value.trail is trail
            assert trail.event == "tcp.connect.timeout"
        else:
            (await dial).close()
            assert trail.event == ""
            assert trail.steps[-1].share < trail.steps[-1].took
    assert results(trail) == [("127.0.0.1", "connected")]
    assert sockets.made
    assert not sockets.open()


# -- options -----------------------------------------------------------------------------------


def test_what_is_set_on_a_socket() -> None:
    options = SocketOptions(keepalive=30, user_timeout=1.5, local="127.0.0.9")
    with peer(silent) as server:
        sock, number = begun(addresses(server.port, "127.0.0.1")[0], options)
        assert sock is not None
        assert number in (0, errno.EINPROGRESS)
        with sock:
            tcp = socket.IPPROTO_TCP
            assert sock.getsockopt(tcp, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == 30
            assert sock.getsockopt(tcp, socket.TCP_KEEPINTVL) == 3
            assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 1500
            assert sock.getsockname()[0] == "127.0.0.9"
            assert not sock.getblocking()


@pytest.mark.parametrize(
    ("host", "local", "number"),
    [
        ("127.0.0.1", "::1", errno.EAFNOSUPPORT),
        ("::1", "127.0.0.1", errno.EAFNOSUPPORT),
        ("127.0.0.1", "192.0.2.1", errno.EADDRNOTAVAIL),
        ("255.255.255.255", "", errno.ENETUNREACH),
    ],
)
def test_an_attempt_that_cannot_begin(host: str, local: str, number: int) -> None:
    assert begun(addresses(9, host)[0], SocketOptions(local=local)) == (None, number)
