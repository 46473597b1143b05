"""The ASGI carrier on real servers: who leaves, who is cut, and what the handler sees of it.

Every test runs on each server, most of them in each of the clothes of `asgi_apps`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded, StreamReset

from tests.adapters.asgi_peers import (
    DEADLINE,
    PATIENCE,
    Service,
    everything,
    exactly_one,
    fresh_key,
    head,
    parsed,
    running,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

SERVERS = ("uvicorn", "h11", "hypercorn", "granian")
CLOTHES = ("plain", "star", "star1", "star3", "fast", "fast1", "fast3")
FRAMED = CLOTHES[1:]


@pytest.fixture(scope="module", params=SERVERS, name="service")
def served(request: pytest.FixtureRequest) -> Iterator[Service]:
    with running(request.param) as service:
        yield service
        tail = service.log()
        assert "Traceback" not in tail, tail[tail.index("Traceback") - 300 :][:6000]


# -- the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dress", CLOTHES)
def test_a_spent_deadline_is_a_504_with_a_problem_document(service: Service, dress: str) -> None:
    key = fresh_key()
    status, headers, body = service.ask(
        f"/{dress}/sleep", f"x-key: {key}", f"{DEADLINE}: 60", "x-request-id: given name"
    )
    assert status == 504
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == "given name"
    assert headers["server-timing"].startswith("shop;dur=")
    assert headers["deadline-exceeded"].startswith(f"hop=shop; scope=GET%20/{dress}/sleep; ")
    document = json.loads(body)
    assert document["type"] == "urn:holdfast:problem:deadline-exceeded"
    assert document["status"] == 504
    assert document["hop"] == "shop"
    assert document["request_id"] == "given name"
    assert 0 < document["budget_ms"] <= 60 <= document["elapsed_ms"] + 1
    assert service.until(key, lambda j: "ended" in j) == ["began", "cancelled", "ended"]
    service.settled()


def test_the_answer_to_a_head_request_has_no_body(service: Service) -> None:
    status, headers, body = service.ask("/plain/sleep", f"{DEADLINE}: 40", method="HEAD")
    assert (status, body) == (504, b"")
    assert headers["content-type"] == "application/problem+json"


def test_an_expired_request_never_reaches_the_handler(service: Service) -> None:
    key = fresh_key()
    assert service.ask("/star/sleep", f"x-key: {key}", f"{DEADLINE}: 0")[0] == 504
    assert service.story(key)["journal"] == []


def test_after_a_504_the_connection_can_be_used_again(service: Service) -> None:
    with service.connect() as sock:
        sock.sendall(head("/plain/sleep", f"{DEADLINE}: 40"))
        assert exactly_one(sock)[0] == 504
        sock.sendall(head("/plain/quick"))
        status, _, body = exactly_one(sock)
        assert (status, body) == (200, b'"quick"')


def test_a_second_request_on_a_connection_has_a_deadline_of_its_own(service: Service) -> None:
    with service.connect() as sock:
        for _ in range(2):
            sock.sendall(head("/plain/late", f"{DEADLINE}: 300"))
            assert exactly_one(sock)[0] == 200


def test_pipelined_requests_are_told_apart(service: Service) -> None:
    first = "/plain/quick" if service.which == "hypercorn" else "/plain/late"
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(
            head(first, "x-request-id: one", f"{DEADLINE}: 5000")
            + head("/plain/background", "x-request-id: two", f"x-key: {key}")
            + head("/plain/who", "x-request-id: three", f"{DEADLINE}: 400")
        )
        assert exactly_one(sock)[1]["x-request-id"] == "one"
        assert exactly_one(sock)[1]["x-request-id"] == "two"
        status, headers, body = exactly_one(sock)
        assert (status, headers["x-request-id"]) == (200, "three")
        assert [name for _, name, _ in json.loads(body).values()] == ["three", "three"]
    assert service.until(key, lambda j: len(j) > 1) == ["replied", "background done"]
    assert "escaped" not in service.ask("/debug/holdfast/tree.json")[2].decode()


@pytest.mark.parametrize("dress", ["star", "fast1"])
def test_a_handler_in_a_thread_is_answered_for_and_counted(service: Service, dress: str) -> None:
    key = fresh_key()
    before = service.story(key)["counts"].get("overdue", 0)
    status, _, _ = service.ask(f"/{dress}/thread", f"x-key: {key}", f"{DEADLINE}: 60")
    story = service.story(key)
    assert status == 504
    assert story["journal"] == ["thread began"]  # the answer came first
    assert story["counts"]["overdue"] == before + 1
    assert story["open"] == [f"GET /{dress}/thread"]
    assert service.until(key, lambda j: len(j) > 1) == ["thread began", "thread ended"]
    service.settled()


@pytest.mark.parametrize("dress", FRAMED)
@pytest.mark.parametrize("what", ["inner", "group"])
def test_an_error_of_ours_becomes_the_504_whatever_page_the_framework_has(
    service: Service, dress: str, what: str
) -> None:
    status, headers, body = service.ask(f"/{dress}/{what}")
    assert status == 504
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["scope"].endswith("/inner")


# -- a client that leaves -----------------------------------------------------------------------


@pytest.mark.parametrize("dress", CLOTHES)
def test_a_sleeping_handler_is_cancelled_when_its_client_leaves(
    service: Service, dress: str
) -> None:
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(head(f"/{dress}/sleep", f"x-key: {key}", f"x-request-id: {key}"))
        service.until(key, lambda j: "began" in j)
    assert service.until(key, lambda j: "ended" in j) == ["began", "cancelled", "ended"]
    service.logged(f"499 GET /{dress}/sleep request_id={key}")
    service.settled()


@pytest.mark.parametrize("dress", ["fast", "fast1", "fast3"])
def test_dependencies_are_torn_down_exactly_once(service: Service, dress: str) -> None:
    for way in ("leave", "deadline"):
        key = fresh_key()
        with service.connect() as sock:
            more = [f"{DEADLINE}: 200"] if way == "deadline" else []
            sock.sendall(head(f"/{dress}/depends", f"x-key: {key}", *more))
            service.until(key, lambda j: "began" in j)
            if way == "deadline":
                assert exactly_one(sock)[0] == 504
        found = service.until(key, lambda j: "torn down" in j)
        assert sorted(found) == sorted(
            [
                "set up",
                "set up in thread",
                "began",
                "cancelled",
                "ended",
                "torn down",
                "torn down in thread",
            ]
        )
    service.settled()


@pytest.mark.parametrize("dress", ["star", "fast"])  # Starlette hides it below BaseHTTPMiddleware
def test_a_handler_that_asks_in_its_clean_up_is_told(service: Service, dress: str) -> None:
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(head(f"/{dress}/asks", f"x-key: {key}"))
        service.until(key, lambda j: "began" in j)
    assert service.until(key, lambda j: len(j) > 1)[1] == "disconnected: True"


@pytest.mark.parametrize("dress", CLOTHES)
def test_a_handler_that_reads_the_disconnect_may_finish(service: Service, dress: str) -> None:
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(head(f"/{dress}/told", f"x-key: {key}", "content-length: 10", method="POST"))
        service.until(key, lambda j: "began" in j)
    assert service.until(key, lambda j: len(j) > 2) == ["began", "told", "grace used"]
    service.settled()


@pytest.mark.parametrize("dress", CLOTHES)
@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_a_body_that_is_read_late_is_complete(service: Service, dress: str, size: int) -> None:
    body = random.Random(size).randbytes(size)
    found = service.ask(f"/{dress}/late", "content-type: x/y", method="POST", body=body)
    assert found[0] == 200
    assert json.loads(found[2]) == {"length": size, "sha": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("dress", ["plain", "star", "fast3"])
@pytest.mark.parametrize("what", ["late", "slow"])
def test_a_body_in_chunks_with_pauses_is_complete(service: Service, dress: str, what: str) -> None:
    dice = random.Random(7)
    whole = b""
    with service.connect() as sock:
        sock.sendall(
            head(
                f"/{dress}/{what}", "transfer-encoding: chunked", "connection: close", method="POST"
            )
        )
        for size in (1, 70_000, 5, 200_000, 0, 65_536, 3, 90_000):
            if size:
                part = dice.randbytes(size)
                whole += part
                sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            time.sleep(dice.random() * 0.04)
        sock.sendall(b"0\r\n\r\n")
        status, _, answer = parsed(everything(sock))
    assert status == 200
    assert json.loads(answer) == {"length": len(whole), "sha": hashlib.sha256(whole).hexdigest()}


def test_an_upload_that_nobody_reads_stays_with_the_client(service: Service) -> None:
    # 50 MB would fit into no buffer on the way: the sender must come to a halt.
    key = fresh_key()
    part = os.urandom(100_000)
    sent = 0
    with service.connect() as sock:
        sock.sendall(
            head(
                "/plain/sleep",
                f"x-key: {key}",
                f"{DEADLINE}: 1500",  # nobody reads, so nobody sees that the client leaves
                "content-length: 50000000",
                method="POST",
            )
        )
        service.until(key, lambda j: "began" in j)
        sock.settimeout(0.7)
        try:
            while sent < 50_000_000:
                sent += sock.send(part)
        except TimeoutError:
            pass
    assert sent < 20_000_000


# -- a response that has begun ------------------------------------------------------------------


@pytest.mark.parametrize("dress", CLOTHES)
@pytest.mark.parametrize("what", ["drip", "chunks"])
def test_a_response_that_has_begun_is_cut_at_the_deadline(
    service: Service, dress: str, what: str
) -> None:
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(head(f"/{dress}/{what}", f"x-key: {key}", f"{DEADLINE}: 150"))
        raw = everything(sock)
    assert raw.count(b"HTTP/1.1 ") == 1
    status, _, body = parsed(raw)
    assert status == 200
    assert body == (b"x" * 10 if what == "drip" else b"x" * 10 + b"(cut)")
    assert "ended" in service.until(key, lambda j: "ended" in j)
    service.settled()


@pytest.mark.parametrize("dress", CLOTHES)
def test_what_a_handler_does_after_its_response_is_its_own_affair(
    service: Service, dress: str
) -> None:
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(head(f"/{dress}/background", f"x-key: {key}", f"{DEADLINE}: 200"))
        assert exactly_one(sock)[0] == 200
    found = service.until(key, lambda j: len(j) > 1)
    assert found[1].startswith("background done")
    service.settled()


def test_a_file_is_a_complete_response_too(service: Service) -> None:
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(head("/star/file", f"x-key: {key}", f"{DEADLINE}: 200"))
        assert exactly_one(sock)[0] == 200
    service.until(key, lambda j: j == ["background done"])


@pytest.mark.parametrize("dress", ["plain", "star", "fast3"])
def test_an_event_stream_has_an_idle_limit_and_no_total_one(service: Service, dress: str) -> None:
    _, _, body = service.ask(f"/{dress}/sse")
    assert body.count(b"data:") == 5
    assert b"(cut)" not in body


def test_an_event_stream_keeps_to_what_its_caller_set(service: Service) -> None:
    _, _, body = service.ask("/plain/sse", f"{DEADLINE}: 250")
    assert body.endswith(b"(cut)")


# -- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dress", ["plain", *FRAMED])
def test_a_request_knows_who_it_is_in_handlers_and_threads(service: Service, dress: str) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    for given, request_id, echo in (
        (f"traceparent: 00-{trace}-b7ad6b7169203331-01", trace, trace),
        (f"b3: {trace}-b7ad6b7169203331-1", trace, trace),
        (f"x-request-id: {trace}", trace, trace),
        (
            "x-request-id: 0AF76519-16CD-43DD-8448-EB211C80319C",
            trace,
            "0AF76519-16CD-43DD-8448-EB211C80319C",
        ),
    ):
        _, headers, body = service.ask(f"/{dress}/who", given, "x-release-stage: canary")
        assert headers["x-request-id"] == echo
        for seen in json.loads(body).values():
            assert seen == [request_id, echo, ""]  # the stage is not trusted here


@pytest.mark.parametrize("dress", ["star", "fast3"])
def test_a_plain_function_and_a_background_task_know_it_too(service: Service, dress: str) -> None:
    _, _, body = service.ask(f"/{dress}/who-sync", "x-request-id: me")
    assert [seen[1] for seen in json.loads(body).values()] == ["me", "me"]
    key = fresh_key()
    service.ask(f"/{dress}/background", f"x-key: {key}", "x-request-id: me")
    service.until(key, lambda j: j == ["replied", "background done me"])


# -- the debug page -----------------------------------------------------------------------------


def test_the_debug_page_shows_what_is_open(service: Service) -> None:
    key = fresh_key()
    with service.connect() as sock:
        sock.sendall(head("/plain/sleep", f"x-key: {key}"))
        service.until(key, lambda j: "began" in j)
        _, _, body = service.ask("/debug/holdfast/tree")
        assert b"GET /plain/sleep" in body
        _, _, body = service.ask("/debug/holdfast/tree.json")
        assert "requests" in json.loads(body)
    service.until(key, lambda j: "ended" in j)


# -- WebSockets ---------------------------------------------------------------------------------


# h11 and httptools have the same WebSockets below them.
socketed = pytest.mark.parametrize(
    "service", ["uvicorn", "hypercorn", "granian"], indirect=True, scope="module"
)


def dial(service: Service, path: str, key: str, *more: tuple[str, str]) -> Any:
    headers = {"x-key": key, **dict(more)}
    client = pytest.importorskip("websockets.sync.client")
    return client.connect(
        f"ws://127.0.0.1:{service.port}{path}", additional_headers=headers, proxy=None
    )


@socketed
def test_a_websocket_works_and_knows_who_it_is(service: Service) -> None:
    key = fresh_key()
    with dial(service, "/ws/echo", key, ("x-request-id", "me")) as ws:
        for number in range(20):
            ws.send(f"{number}")
        assert [ws.recv(PATIENCE) for _ in range(20)] == [f"echo {n}" for n in range(20)]
        ws.send("who")
        assert json.loads(ws.recv(PATIENCE))[1] == "me"
    assert service.until(key, bool)[0].startswith("saw ")
    service.settled()


@socketed
def test_an_idle_websocket_is_closed_with_1001(service: Service) -> None:
    with dial(service, "/ws/idle", fresh_key()) as ws:
        ws.send("one")
        assert ws.recv(PATIENCE) == "echo one"
        with pytest.raises(Exception, match="nothing was sent or read for 300 ms"):
            ws.recv(PATIENCE)
        assert ws.close_code == 1001


@socketed
def test_a_websocket_handler_at_work_is_cancelled_when_its_client_leaves(service: Service) -> None:
    for polite in (True, False):
        key = fresh_key()
        with dial(service, "/ws/work", key) as ws:
            service.until(key, lambda j: "began" in j)
            if not polite:
                ws.socket.shutdown(socket.SHUT_RDWR)
        assert service.until(key, lambda j: "ended" in j) == ["began", "cancelled", "ended"]
    service.settled()


# -- HTTP/2 -------------------------------------------------------------------------------------


class Multiplexed:
    """A bare HTTP/2 client on one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.answers: dict[int, list[Any]] = {}
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def get(self, path: str, *headers: tuple[str, str]) -> int:
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "t")]
        self.h2.send_headers(stream, [*pseudo, *headers], end_stream=True)
        self.answers[stream] = []
        self.flush()
        return stream

    def reset(self, stream: int) -> None:
        self.h2.reset_stream(stream, 8)
        self.flush()

    def read(self, enough: Callable[[], bool]) -> None:
        while not enough():
            data = self.sock.recv(65536)
            assert data, "the connection was closed"
            for event in self.h2.receive_data(data):
                stream = getattr(event, "stream_id", None)
                if stream in self.answers:
                    self.answers[stream].append(event)
            self.flush()

    def ended(self, stream: int) -> bool:
        return any(isinstance(e, StreamEnded | StreamReset) for e in self.answers[stream])

    def status(self, stream: int) -> str:
        first = next(e for e in self.answers[stream] if isinstance(e, ResponseReceived))
        return str(dict(first.headers)[b":status"].decode())


multiplexed = pytest.mark.parametrize(
    "service", ["hypercorn", "granian"], indirect=True, scope="module"
)


@multiplexed
def test_a_reset_cancels_one_stream_and_no_other(service: Service) -> None:
    with service.connect() as sock:
        client = Multiplexed(sock)
        gone, stays = fresh_key(), fresh_key()
        first = client.get("/star1/sleep", ("x-key", gone))
        second = client.get("/plain/sleep", ("x-key", stays), (DEADLINE, "600"))
        service.until(gone, lambda j: "began" in j)
        client.reset(first)
        assert service.until(gone, lambda j: "ended" in j) == ["began", "cancelled", "ended"]
        client.read(lambda: client.ended(second))
        assert client.status(second) == "504"
        service.logged("499 GET /star1/sleep")
        service.settled()


@multiplexed
def test_a_begun_stream_is_reset_at_the_deadline(service: Service) -> None:
    with service.connect() as sock:
        client = Multiplexed(sock)
        other = client.get("/plain/late")
        stream = client.get("/plain/chunks", (DEADLINE, "150"))
        client.read(lambda: client.ended(other))
        service.settled()
        assert client.status(other) == "200"
        client.sock.settimeout(1)
        try:
            client.read(lambda: client.ended(stream))
        except TimeoutError:
            pytest.xfail(f"{service.which} leaves a stream open that its application gave up")
        last = client.answers[stream][-1]
        assert not any(isinstance(e, StreamEnded) for e in client.answers[stream]), last
