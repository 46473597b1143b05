"""The pages of health: what they answer, and that nothing else notices them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from holdfast.adapters.asgi import HealthPages
from holdfast.domain.lifecycle.settings import HealthSettings
from holdfast.runtime import lifecycle


class Answer:
    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message["body"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def _no_body() -> Any:
    raise AssertionError("a page of health reads nothing")


async def _other(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["type"].encode()})


async def ask(pages: HealthPages, path: str, method: str = "GET", kind: str = "http") -> Answer:
    answer = Answer()
    scope = {"type": kind, "path": path, "method": method, "http_version": "1.1", "headers": []}
    await pages(scope, _no_body, answer.send)
    return answer


async def _good() -> Mapping[str, Any]:
    return {"status": "ready", "why": "", "checks": {}}


async def _bad() -> Mapping[str, Any]:
    checks = {"db": {"status": "down", "error": "password of db.internal", "critical": True}}
    return {"status": "unready", "why": "db is down", "checks": checks}


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
async def test_who_answers_lives_whatever_the_report_says(path: str) -> None:
    pages = HealthPages(_other, _bad, stopping=lambda: "draining")
    answer = await ask(pages, path)
    assert (answer.status, answer.json) == (200, {"status": "alive"})
    assert answer.headers[b"cache-control"] == b"no-store"
    assert answer.headers[b"connection"] == b"close"


async def test_ready_is_what_the_report_says() -> None:
    answer = await ask(HealthPages(_other, _good), "/readyz")
    assert (answer.status, answer.json["status"]) == (200, "ready")
    assert b"connection" not in answer.headers
    answer = await ask(HealthPages(_other, _bad, retry_after=2.5), "/readyz")
    assert (answer.status, answer.json["why"]) == (503, "db is down")
    assert answer.headers[b"retry-after"] == b"3"
    assert "password" not in answer.body.decode()
    answer = await ask(HealthPages(_other, _bad, details=True), "/readyz")
    assert "password" in answer.body.decode()


async def test_from_the_moment_a_stop_begins_nobody_is_asked() -> None:
    asked: list[int] = []
    why = ""

    async def report() -> Mapping[str, Any]:
        nonlocal why
        asked.append(1)
        why = "terminating"  # it begins while the checks are asked
        return await _good()

    pages = HealthPages(_other, report, stopping=lambda: why)
    for _ in range(3):
        answer = await ask(pages, "/readyz")
        assert (answer.status, answer.json["why"]) == (503, "terminating")
    assert asked == [1]


async def test_a_report_that_fails_is_an_answer_and_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def report() -> Mapping[str, Any]:
        raise ConnectionError("secret")

    answer = await ask(HealthPages(_other, report), "/readyz")
    assert answer.status == 503
    assert b"secret" not in answer.body
    assert "secret" in caplog.text


async def test_head_says_the_length_and_sends_nothing() -> None:
    pages = HealthPages(_other, _good)
    whole, head = await ask(pages, "/readyz"), await ask(pages, "/readyz", "HEAD")
    assert head.status == 200
    assert head.body == b""
    assert head.headers == whole.headers
    assert int(head.headers[b"content-length"]) == len(whole.body)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_told_which_there_are(method: str) -> None:
    answer = await ask(HealthPages(_other, _good), "/healthz", method)
    assert answer.status == 405
    assert answer.headers[b"allow"] == b"GET, HEAD"


async def test_everything_else_goes_through() -> None:
    pages = HealthPages(_other, _good)
    for path, kind in (("/", "http"), ("/healthz/", "http"), ("/healthz", "websocket")):
        answer = await ask(pages, path, kind=kind)
        assert (answer.status, answer.body) == (299, kind.encode())
    answer = Answer()
    await pages({"type": "lifespan"}, _no_body, answer.send)
    assert answer.body == b"lifespan"


async def test_paths_and_the_whole_can_be_changed() -> None:
    settings = HealthSettings(live="/alive", alias="", ready="/go")
    pages = HealthPages(_other, _good, settings)
    assert (await ask(pages, "/alive")).status == 200
    assert (await ask(pages, "/go")).status == 200
    for path in ("/healthz", "/livez", "/readyz", ""):
        assert (await ask(pages, path)).status == 299
    off = HealthPages(_other, _good, HealthSettings(enabled=False))
    assert (await ask(off, "/healthz")).status == 299


async def test_the_health_of_a_host_is_such_a_report() -> None:
    host = lifecycle.Host("shop")
    host.health.check("db", lambda: True)

    async def report() -> Mapping[str, Any]:
        return (await host.health.ready()).as_dict()

    pages = HealthPages(_other, report, stopping=lambda: str(host.phase) if host.stopping else "")
    assert (await ask(pages, "/readyz")).status == 503
    await host.start()
    answer = await ask(pages, "/readyz")
    assert (answer.status, answer.json["checks"]["db"]["status"]) == (200, "up")
    host.stop()
    answer = await ask(pages, "/readyz")
    assert (answer.status, answer.json["why"]) == (503, "terminating")
    await host.ended()
    assert (await ask(pages, "/healthz")).status == 200
