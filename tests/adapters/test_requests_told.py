"""requests and urllib3: who watches calls is told of their ends, and bodies stay whole."""

# ruff: noqa: SIM117 - a client inside its server reads better as a block of its own

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

import holdfast
from holdfast.adapters.requests import instrument
from holdfast.domain.phases import Phase, Trail
from tests.runtime.peering import Peer, peer

pytestmark = pytest.mark.system


class Observer:
    def __init__(self) -> None:
        self.told: list[tuple[Trail, BaseException | None, str]] = []

    def call_ended(self, trail: Trail, error: BaseException | None) -> None:
        self.told.append((trail, error, trail.event))


def answering(*answers: bytes) -> Callable[[Peer, socket.socket], None]:
    """One answer for each request, then silence."""
    left = list(answers)

    def serve(me: Peer, sock: socket.socket) -> None:
        while sock.recv(65536):
            if left:
                sock.sendall(left.pop(0))

    return serve


def reply(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


BUSY = reply("503 Busy", b"later")
RETRIES = Retry(3, status_forcelist=[503])


def by_manager(observer: Observer) -> tuple[Any, Callable[[str], Any]]:
    manager = instrument(urllib3.PoolManager(), observer=observer)
    return manager, lambda url: manager.request("GET", url, retries=RETRIES)


def by_session(observer: Observer) -> tuple[Any, Callable[[str], Any]]:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=RETRIES))
    instrument(session, observer=observer)
    return session, session.get


@pytest.mark.parametrize("first", [BUSY, reply("302 Found", b"there", "location: /there")])
@pytest.mark.parametrize("make", [by_manager, by_session])
def test_the_end_of_a_call_is_told_and_not_that_of_its_first_attempt(
    make: Callable[[Observer], tuple[Any, Callable[[str], Any]]], first: bytes
) -> None:
    observer = Observer()
    client, get = make(observer)
    with peer(answering(first)) as server, client:
        with pytest.raises(holdfast.DeadlineExceeded) as caught, holdfast.timeout(0.4):
            get(f"http://127.0.0.1:{server.port}/")
    _, error, event = observer.told[-1]
    assert error is caught.value
    assert event == "http.header.timeout"
    # Each hop of requests is a call of its own; every other kind of attempt is not.
    hops = 2 if make is by_session and first is not BUSY else 1
    assert len(observer.told) == hops


@pytest.mark.parametrize("make", [by_manager, by_session])
def test_a_call_with_two_attempts_is_told_once(
    make: Callable[[Observer], tuple[Any, Callable[[str], Any]]],
) -> None:
    observer = Observer()
    client, get = make(observer)
    with peer(answering(BUSY, reply("200 OK", b"ok"))) as server, client:
        with holdfast.timeout(5):
            get(f"http://127.0.0.1:{server.port}/")
    ((trail, error, _),) = observer.told
    assert error is None
    assert [step.phase for step in trail.steps].count(Phase.BODY) == 2


def test_a_pause_belongs_to_no_phase() -> None:
    observer = Observer()
    manager = instrument(urllib3.PoolManager(), observer=observer)
    again = reply("503 Busy", b"later", "retry-after: 1")
    with peer(answering(again, reply("200 OK"))) as server, manager:
        with holdfast.timeout(20):
            manager.request("GET", f"http://127.0.0.1:{server.port}/", retries=RETRIES)
    ((trail, _, _),) = observer.told
    first = next(step for step in trail.steps if step.phase is Phase.BODY)
    assert "then a pause of 1" in first.detail
    place = trail.steps.index(first)
    assert trail.steps[place + 1].began - (first.began + first.took) >= 0.9


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_any_error_that_ends_a_call_is_told(error: type[BaseException]) -> None:
    def body() -> Iterator[bytes]:
        yield b"a"
        raise error("of the body")

    observer = Observer()
    session = instrument(requests.Session(), observer=observer)
    with peer(answering()) as server, session, pytest.raises(error) as caught:
        session.post(f"http://127.0.0.1:{server.port}/", data=body())
    assert [one[1] for one in observer.told] == [caught.value]


# -- a look into a body ----------------------------------------------------------------------------

PROBLEM = json.dumps({"type": "about:blank", "title": "x", "status": 404}).encode()
NOT_FOUND = reply("404 Not Found", PROBLEM, "content-type: application/problem+json")

READS: dict[str, Callable[[Any], bytes]] = {
    "raw.read": lambda response: response.raw.read(),
    "raw.read in parts": lambda response: response.raw.read(5) + response.raw.read(),
    "raw.read1": lambda response: response.raw.read1(5) + response.raw.read(),
    "raw.stream": lambda response: b"".join(response.raw.stream(10)),
    "iter_content": lambda response: b"".join(response.iter_content(7)),
    "content": lambda response: response.content,
}


@pytest.mark.parametrize("read", READS)
def test_a_problem_that_was_looked_into_can_be_read(read: str) -> None:
    observer = Observer()
    session = instrument(requests.Session(), observer=observer)
    with peer(answering(NOT_FOUND, reply("200 OK", b"ok"))) as server, session:
        url = f"http://127.0.0.1:{server.port}/"
        with holdfast.timeout(10):
            assert READS[read](session.get(url, stream=True)) == PROBLEM
            assert session.get(url).content == b"ok"
    assert [error for _, error, _ in observer.told] == [None, None]


def test_a_problem_that_breaks_off_is_an_error_for_its_reader() -> None:
    def breaking(me: Peer, sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(NOT_FOUND[:-5])
        sock.close()

    with peer(breaking) as server, instrument(requests.Session()) as session:
        response = session.get(f"http://127.0.0.1:{server.port}/", stream=True)
        assert response.status_code == 404
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            _ = response.content
