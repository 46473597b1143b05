"""Flask and Django under gunicorn: one deadline from the caller to the leaf, and an answer in time.

Nothing in a thread can be cancelled. So what is proven here is that every wait ends by itself.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.adapters.asgi_peers import DEADLINE, everything, exactly_one, head, parsed
from tests.adapters.rude import Rude
from tests.adapters.wsgi_peers import PATIENCE, ROOT, Gunicorn, gunicorn

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"traceparent: 00-{TRACE}-00f067aa0ba902b7-01"
FRAMEWORKS = ("flask", "django", "plain")


@pytest.fixture(scope="module", name="rude")
def rude_server() -> Iterator[Rude]:
    with Rude() as rude:
        yield rude


@pytest.fixture(scope="module", params=["sync", "gthread"], name="served")
def served_by_gunicorn(request: pytest.FixtureRequest, rude: Rude) -> Iterator[Gunicorn]:
    with gunicorn(request.param, rude.url("")) as served:
        yield served


def _heads(rude: Rude, mark: str) -> list[str]:
    return [text for text in rude.heads if mark in text]


@pytest.mark.parametrize(
    ("dress", "client", "rudeness"),
    [
        ("flask", "requests", "body-trickle"),
        ("django", "httpx", "body-trickle"),
        ("flask", "httpx", "header-trickle"),
        ("django", "requests", "header-trickle"),
    ],
)
def test_a_view_that_asks_a_dripping_upstream_is_answered_at_the_callers_deadline(
    served: Gunicorn, rude: Rude, dress: str, client: str, rudeness: str
) -> None:
    mark = f"{dress}-{client}-{rudeness}-{served.port}"
    began = time.monotonic()
    status, headers, body = served.ask(
        f"/{dress}/{client}/{rudeness}",
        f"{DEADLINE}: 400",
        f"x-request-id: {mark}",
        PARENT,
        "x-release-stage: canary",
        "baggage: tenant=acme",
    )
    assert time.monotonic() - began < ENDED
    assert status == 504, served.log()
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == mark
    assert headers["server-timing"].startswith(f"{dress};dur=")
    assert headers["deadline-exceeded"].startswith(f"hop={dress}; scope=GET%20/{dress}/{client}/")
    document = json.loads(body)
    assert document["type"] == "urn:holdfast:problem:deadline-exceeded"
    assert document["request_id"] == mark
    (told,) = _heads(rude, mark)
    assert 0 < _left(told) < 400
    assert f"00-{TRACE}-" in told
    assert "00f067aa0ba902b7" not in told
    assert "x-release-stage: canary" in told.lower()
    assert "baggage: tenant=acme" in told.lower()
    assert rude.settled()  # the connection is closed, not left to drip


def _left(told: str) -> float:
    line = next(line for line in told.lower().split("\r\n") if line.startswith(f"{DEADLINE}:"))
    return float(line.partition(":")[2])


@pytest.mark.parametrize("dress", ["flask", "django"])
def test_a_call_that_cannot_be_done_in_time_is_refused_before_anybody_is_dialled(
    served: Gunicorn, rude: Rude, dress: str
) -> None:
    before = len(rude.heads)
    status, headers, body = served.ask(f"/{dress}/picky", f"{DEADLINE}: 20000")
    assert status == 504
    # There is time left for the caller, so another try may succeed elsewhere.
    assert "deadline-exceeded" not in headers
    document = json.loads(body)
    assert "not begun" in document["detail"]
    assert document["hop"] == dress
    assert len(rude.heads) == before
    assert not rude.open or rude.settled()


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_the_context_of_the_caller_is_the_ambient_one(served: Gunicorn, dress: str) -> None:
    status, headers, body = served.ask(
        f"/{dress}/context",
        f"{DEADLINE}: 5000",
        PARENT,
        "x-release-stage: canary",
        "baggage: tenant=acme",
    )
    assert status == 200
    seen = json.loads(body)
    assert 4 < seen["left"] < 5
    assert seen["trace"] == TRACE == headers["x-request-id"]
    assert seen["parent"] == "00f067aa0ba902b7"
    assert seen["stage"] == "canary"
    assert seen["baggage"] == {"tenant": "acme"}
    assert seen["scope"] == f"GET /{dress}/context"


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_a_request_without_headers_gets_a_name_and_the_limit_of_the_policy(
    served: Gunicorn, dress: str
) -> None:
    seen = []
    for _ in range(3):
        _, headers, body = served.ask(f"/{dress}/context")
        told = json.loads(body)
        assert 9 < told["left"] < 10
        assert told["trace"] == headers["x-request-id"]
        assert told["stage"] == ""
        seen.append(told["trace"])
    assert len(set(seen)) == 3, "the identity of one request leaked into the next"


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_an_answer_that_comes_too_late_is_replaced(served: Gunicorn, dress: str) -> None:
    status, headers, body = served.ask(f"/{dress}/sleep/0.35", f"{DEADLINE}: 200")
    assert status == 504
    assert "noticed when the response began" in json.loads(body)["detail"]
    assert "deadline-exceeded" in headers
    status, headers, _ = served.ask(f"/{dress}/sleep/0.5")
    assert status == 504, "the limit of the route holds"
    assert "deadline-exceeded" not in headers, "it was not the caller's"


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_a_scope_in_the_handler_is_a_504_even_where_a_framework_makes_a_page_of_it(
    served: Gunicorn, dress: str
) -> None:
    status, headers, body = served.ask(f"/{dress}/inner")
    assert status == 504
    document = json.loads(body)
    assert document["scope"] == f"GET /{dress}/inner/charge"
    assert document["hop"] == dress
    assert "deadline-exceeded" not in headers


@pytest.mark.parametrize("dress", ["flask", "django"])
def test_what_the_hop_below_was_late_for_is_told(served: Gunicorn, dress: str) -> None:
    status, _, body = served.ask(f"/{dress}/requests/spent", f"{DEADLINE}: 5000")
    assert status == 504
    document = json.loads(body)
    assert document["below"], document


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_the_page_of_a_handler_that_catches_it_stands(served: Gunicorn, dress: str) -> None:
    status, _, body = served.ask(f"/{dress}/kind/spent", f"{DEADLINE}: 5000")
    assert status == 200
    assert body.startswith(b"sorry: deadline exceeded")


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_an_error_of_the_application_is_left_alone(served: Gunicorn, dress: str) -> None:
    before = served.story(dress)["counts"]
    status, headers, _ = served.ask(f"/{dress}/boom")
    assert status == 500
    assert "problem" not in headers.get("content-type", "")
    assert served.story(dress)["counts"] == before


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_a_body_is_made_inside_the_scope(served: Gunicorn, dress: str) -> None:
    status, headers, body = served.ask(f"/{dress}/drip/3/0.01", "x-request-id: of the body")
    assert status == 200
    assert headers["x-request-id"] == "of the body"
    assert body == b"".join(b"%d of the body\n" % index for index in range(3))


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_a_begun_response_is_cut_so_that_it_never_looks_whole(served: Gunicorn, dress: str) -> None:
    status, headers, body = served.ask(f"/{dress}/drip/50/0.05", f"{DEADLINE}: 400")
    assert status == 200
    assert headers["transfer-encoding"] == "chunked"
    assert body.endswith(b"(cut)")
    assert body.count(b"\n") < 50


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_a_slow_reader_of_a_body_with_a_length_is_cut_short(served: Gunicorn, dress: str) -> None:
    size = 48_000_000
    with served.connect() as sock:
        sock.sendall(head(f"/{dress}/big/{size}", f"{DEADLINE}: 250"))
        time.sleep(0.4)
        status, headers, body = parsed(everything(sock))
    assert status == 200
    assert headers["content-length"] == str(size)
    assert len(body) < size


@pytest.mark.parametrize("dress", FRAMEWORKS)
def test_the_answer_to_a_head_request_has_no_body(served: Gunicorn, dress: str) -> None:
    status, headers, body = served.ask(f"/{dress}/sleep/0.1", f"{DEADLINE}: 40", method="HEAD")
    assert (status, body) == (504, b"")
    assert headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("dress", ["flask", "django"])
def test_a_file_is_sent_as_the_server_sends_files(served: Gunicorn, dress: str) -> None:
    _, headers, body = served.ask(f"/{dress}/file")
    whole = (ROOT / "src/holdfast/adapters/wsgi/exchange.py").read_bytes()
    assert body == whole
    assert headers["content-length"] == str(len(whole))
    assert len(headers["x-request-id"]) == 32


@pytest.mark.parametrize("dress", ["flask", "django"])
def test_a_view_that_is_a_coroutine_has_the_context_and_the_limit(
    served: Gunicorn, dress: str
) -> None:
    status, _, body = served.ask(f"/{dress}/async/0", f"{DEADLINE}: 5000", "x-request-id: me")
    seen = json.loads(body)
    assert (status, seen["id"]) == (200, "me")
    assert 4 < seen["left"] < 5
    began = time.monotonic()
    status, headers, body = served.ask(f"/{dress}/async/60", f"{DEADLINE}: 100")
    assert time.monotonic() - began < ENDED
    assert status == 504
    assert json.loads(body)["scope"] == f"GET /{dress}/async/60/view"
    assert "deadline-exceeded" in headers


# -- waiting for a worker -----------------------------------------------------------------------


@pytest.mark.parametrize("served", ["sync", "one-thread"], indirect=True)
def test_what_expired_while_it_waited_for_a_worker_never_runs(served: Gunicorn) -> None:
    before = served.story("flask")["counts"].get("refused.expired", 0)
    with served.connect() as slow, served.connect() as late:
        slow.sendall(head("/plain/drip/2/0.5", "connection: close"))
        assert slow.recv(1) == b"H"  # the only worker is busy from here on
        late.sendall(head("/flask/sleep/0", "connection: close", f"{DEADLINE}: 250"))
        status, _, body = parsed(everything(late))
        assert status == 504
        assert "not begun" in json.loads(body)["detail"]
        told = served.story("flask")
        assert told["counts"]["refused.expired"] == before + 1
        assert "sleep/0" not in told["begun"]
        everything(slow)


def test_a_trusted_proxy_tells_since_when_a_request_has_waited(served: Gunicorn) -> None:
    taken = time.time() - 2
    _, _, body = served.ask("/flask/context", f"X-Request-Start: t={taken:.3f}")
    assert 7 < json.loads(body)["left"] < 8.1
    status, _, _ = served.ask("/flask/context", f"X-Request-Start: {taken * 1e3:.0f}",
                              f"{DEADLINE}: 1000")  # fmt: skip
    assert status == 504


# -- the end ------------------------------------------------------------------------------------


def test_a_worker_that_stops_finishes_what_is_in_flight() -> None:
    with gunicorn("sync") as served, served.connect() as sock:
        sock.sendall(head("/flask/drip/4/0.1"))
        assert sock.recv(1) == b"H"
        served.terminate()
        _whole(b"H" + everything(sock))
        assert served.process.wait(PATIENCE) == 0


def test_a_kept_connection_is_told_that_it_ends() -> None:
    with gunicorn("gthread") as served, served.connect() as busy, served.connect() as kept:
        kept.sendall(head("/flask/context"))
        _, headers, _ = exactly_one(kept)
        assert headers["connection"] == "keep-alive"
        busy.sendall(head("/django/drip/4/0.2"))
        assert busy.recv(1) == b"H"
        served.terminate()
        time.sleep(0.2)
        kept.sendall(head("/flask/context"))
        status, headers, _ = exactly_one(kept)
        assert status == 200
        assert headers["connection"] == "close"
        _whole(b"H" + everything(busy))
        assert served.process.wait(PATIENCE) == 0


def _whole(raw: bytes) -> None:
    _, _, body = parsed(raw)
    assert body.count(b"\n") == 4
    assert not body.endswith(b"(cut)")


def test_many_requests_at_once_do_not_mix(served: Gunicorn) -> None:
    wrong: list[str] = []

    def ask(dress: str, name: str) -> None:
        for index in range(10):
            given = f"{name}-{index}"
            budget = 2000 + 100 * index
            _, headers, body = served.ask(
                f"/{dress}/context", f"x-request-id: {given}", f"{DEADLINE}: {budget}"
            )
            seen = json.loads(body)
            if (seen["id"], headers["x-request-id"]) != (given, given):
                wrong.append(f"{given}: {seen}")
            if not seen["left"] <= budget / 1e3:
                wrong.append(f"{given}: {seen}")

    threads = [threading.Thread(target=ask, args=[FRAMEWORKS[n % 3], f"t{n}"]) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
