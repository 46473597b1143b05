"""Questions to name servers that lose them, cut them, refuse them, or are not there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from holdfast.runtime.net import queries as module
from holdfast.runtime.net.queries import Queries, Question, Server, Verdict, rounds
from tests.runtime.name_servers import Peer, name_server, nothing
from tests.runtime.naming import LONG
from tests.runtime.peering import descriptors

pytestmark = pytest.mark.system

SLOW = 60.0
"""Seconds to wait for a server that is never waited for so long."""


@pytest.fixture
def ended() -> Callable[[], None]:
    """Waits until the threads of this test have ended; others may have left idle ones."""
    before = threading.enumerate()

    def wait() -> None:
        until = time.monotonic() + LONG
        while any(t.name == "holdfast dns" and t not in before for t in threading.enumerate()):
            assert time.monotonic() < until
            time.sleep(0.002)

    return wait


@pytest.fixture
def queries(ended: Callable[[], None]) -> Iterator[Queries]:
    asking = Queries()
    yield asking
    asking.close()
    ended()


def judged(message: bytes) -> Verdict:
    words = {b"cut": Verdict.CUT, b"no": Verdict.REFUSED, b"other": Verdict.FOREIGN}
    return words.get(message, Verdict.ANSWER)


class Asked:
    """A question, and what came of it."""

    def __init__(self, queries: Queries, plan: Sequence[tuple[Server, float]]) -> None:
        self.results: list[bytes | str] = []
        self._done = threading.Event()
        queries.ask(Question(b"question", judged, plan, self._told))

    def _told(self, result: bytes | str) -> None:
        self.results.append(result)
        self._done.set()

    def result(self) -> bytes | str:
        assert self._done.wait(LONG)
        assert len(self.results) == 1
        return self.results[0]


def at(*peers: Peer, wait: float = SLOW) -> list[tuple[Server, float]]:
    return [(Server("127.0.0.1", peer.port), wait) for peer in peers]


def says(*messages: bytes) -> Callable[[bytes, int], bytes | None]:
    """One for each query; then nothing."""
    return lambda _, number: messages[number] if number < len(messages) else None


def nobody() -> tuple[Server, float]:
    """A port on which nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return Server(*probe.getsockname()), SLOW


def test_a_lost_question_is_asked_again(queries: Queries) -> None:
    with name_server(lambda _, number: b"yes" if number else None) as peer:
        plan = [*at(peer, wait=0.02), *at(peer)]
        assert Asked(queries, plan).result() == b"yes"
        assert len(peer.queries) == 2


def test_a_late_answer_of_the_first_server_is_taken_while_the_second_is_asked(
    queries: Queries,
) -> None:
    second_asked = threading.Event()

    def late(query: bytes, number: int) -> bytes:
        assert second_asked.wait(LONG)
        return b"late"

    def second(query: bytes, number: int) -> None:
        second_asked.set()

    with name_server(late) as one, name_server(second) as two:
        assert Asked(queries, [*at(one, wait=0.02), *at(two)]).result() == b"late"


def test_whoever_cannot_tell_is_not_asked_again_and_the_next_one_is_at_once(
    queries: Queries,
) -> None:
    with name_server(says(b"no")) as one, name_server(says(b"other", b"yes")) as two:
        plan = [*at(one), nobody(), *at(two, wait=0.05), *at(one, two)]
        assert Asked(queries, plan).result() == b"yes"
        assert (len(one.queries), len(two.queries)) == (1, 2)


def test_when_nobody_can_tell_each_one_is_named(queries: Queries) -> None:
    gone, _ = nobody()
    with name_server(says(b"no")) as one, name_server(nothing) as two:
        plan = [*at(one), (gone, SLOW), *at(two, wait=0.05), *at(one, wait=SLOW)]
        assert Asked(queries, plan).result() == (
            f"127.0.0.1:{one.port}: cannot tell, {gone}: [Errno 111] Connection refused, "
            f"127.0.0.1:{two.port}: no answer"
        )


def test_without_a_server_there_is_no_answer(queries: Queries) -> None:
    assert Asked(queries, []).result() == ""
    assert "interface" in str(Asked(queries, [(Server("fe80::1%nonexistent"), SLOW)]).result())


def test_a_cut_answer_comes_whole_over_tcp(queries: Queries) -> None:
    whole = b"w" * 60_000
    with name_server(says(b"cut"), says(whole)) as peer:
        assert Asked(queries, at(peer)).result() == whole
        assert peer.queries == [("udp", b"question"), ("tcp", b"question")]


@pytest.mark.parametrize("reply", [says(), says(b"no"), says(b"other"), says(b"cut")])
def test_a_server_that_fails_over_tcp_is_out(queries: Queries, reply: Any) -> None:
    with name_server(says(b"cut"), reply) as one, name_server(says(b"yes")) as two:
        assert Asked(queries, at(one, two, one)).result() == b"yes"
        assert len(one.queries) == 2


def test_nobody_listens_to_tcp(queries: Queries) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        asked = Asked(queries, [(Server(*udp.getsockname()), SLOW)])
        udp.settimeout(LONG)
        _, source = udp.recvfrom(512)
        udp.sendto(b"cut", source)
        assert "refused" in str(asked.result())


def test_many_at_once_and_their_sockets_are_gone_afterwards(
    queries: Queries, ended: Callable[[], None]
) -> None:
    with name_server(lambda query, _: b"yes") as peer:
        before = descriptors()
        all_of_them = [Asked(queries, at(peer, wait=1) * 5) for _ in range(200)]
        assert {asked.result() for asked in all_of_them} == {b"yes"}
        queries.close()
        ended()
        assert descriptors() <= before
    assert Asked(queries, []).result() == ""  # it comes back when it is needed


def test_too_many_at_once_are_refused(queries: Queries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    go = threading.Event()

    def later(query: bytes, number: int) -> bytes:
        assert go.wait(LONG)
        return b"yes"

    with name_server(later) as peer:
        taken = [Asked(queries, at(peer)) for _ in range(3)]
        assert Asked(queries, at(peer)).result() == "3 questions are under way already"
        go.set()
        assert {asked.result() for asked in taken} == {b"yes"}
        assert Asked(queries, at(peer)).result() == b"yes"


def test_a_mistake_of_one_who_asks_is_told_and_harms_nobody(
    queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def wrong(result: bytes | str) -> None:
        raise ZeroDivisionError

    queries.ask(Question(b"question", judged, [], wrong))
    with name_server(says(b"yes")) as peer:
        assert Asked(queries, at(peer)).result() == b"yes"
    assert [args.exc_type for args in told] == [ZeroDivisionError]


def test_the_thread_goes_when_it_has_no_work_and_not_before(ended: Callable[[], None]) -> None:
    queries = Queries(idle=0.02)
    with name_server(lambda *_: time.sleep(0.1) or b"yes") as peer:
        assert Asked(queries, at(peer)).result() == b"yes"
        ended()
        assert Asked(queries, at(peer)).result() == b"yes"
        asked = Asked(queries, at(peer))
        queries.close()  # what is under way goes on
        assert asked.result() == b"yes"
        ended()


def test_the_plan_asks_everybody_soon_and_then_with_patience() -> None:
    a, b = Server("192.0.2.1"), Server("192.0.2.2")
    assert list(rounds([a, b], 5.0, 2)) == [
        (a, 0.5), (b, 0.5), (a, 5.0), (b, 5.0), (a, 5.0), (b, 5.0),
    ]  # fmt: skip
    assert list(rounds([a], 0.25, 1)) == [(a, 0.25), (a, 0.25)]
