"""The WSGI middleware by itself: a server of a few lines on both sides of `wsgiref.validate`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import io
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest

import holdfast
from holdfast.adapters.wsgi import HoldfastMiddleware
from holdfast.adapters.wsgi.environ import arrival_of, path_of, waited_since
from holdfast.adapters.wsgi.frameworks import cause_behind
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.context import Carried, Identity
from holdfast.domain.policy import policy_from_mapping
from holdfast.runtime.ambient import use
from holdfast.runtime.clock import monotonic

DEADLINE = "HTTP_X_ENVOY_EXPECTED_RQ_TIMEOUT_MS"
TEXT = [("Content-Type", "text/plain")]
EVENTS = [("Content-Type", "text/event-stream; charset=utf-8")]
VAR: ContextVar[str] = ContextVar("of the application", default="unset")


@dataclass
class Answer:
    """What a client would see; `error` is what left to the server, which cuts then."""

    status: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def code(self) -> int:
        return int(self.status.split()[0])


def environment(path: str = "/", method: str = "GET", **more: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {"PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": ""}
    environ["REQUEST_METHOD"] = method
    environ |= more
    setup_testing_defaults(environ)
    return environ


def ask(
    app: Any,
    path: str = "/",
    method: str = "GET",
    *,
    between: Callable[[], object] = lambda: None,
    **more: Any,
) -> Answer:
    """One request, as a server does it: the first part sends the headers."""
    answer = Answer()
    told: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info and answer.status:
            raise exc_info[1].with_traceback(exc_info[2])
        told[:] = [status, headers]
        return write

    def write(part: bytes) -> None:
        answer.status, answer.headers = told[0], {name.lower(): value for name, value in told[1]}
        if part:
            answer.parts.append(part)

    body: Any = ()
    try:
        body = app(environment(path, method, **more), start_response)
        for part in body:
            write(part)
            between()
        if told:
            write(b"")
    except BaseException as error:
        answer.error = error
    finally:
        if hasattr(body, "close"):
            body.close()
    return answer


def generating(*parts: bytes, headers: Any = TEXT, pause: float = 0.0) -> Any:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", headers)
        for part in parts:
            yield part
            time.sleep(pause)

    return app


def listing(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", TEXT)
    return [b"ok"]


def writing(environ: Any, start_response: Any) -> list[bytes]:
    write = start_response("200 OK", TEXT)
    write(b"o")
    write(b"k")
    return [b"!"]


class Sized:
    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.closed = 0

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.parts)

    def close(self) -> None:
        self.closed += 1


def sized(environ: Any, start_response: Any) -> Sized:
    start_response("200 OK", TEXT)
    return Sized([b"ok"])


def policy(**timeouts: str) -> Any:
    return policy_from_mapping({"timeouts": timeouts})


# -- the protocol -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "body"),
    [
        (listing, b"ok"),
        (generating(b"a", b"", b"b"), b"ab"),
        (generating(), b""),
        (writing, b"ok!"),
        (sized, b"ok"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_both_sides_keep_to_the_protocol(app: Any, body: bytes, method: str) -> None:
    answer = ask(validator(HoldfastMiddleware(validator(app))), method=method)
    assert answer.error is None
    assert answer.status == "200 OK"
    assert answer.body == body
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["server-timing"].startswith("total;dur=")


@pytest.mark.parametrize("app", [listing, generating(b"x"), writing, sized])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_problem_document_keeps_to_the_protocol(app: Any, method: str) -> None:
    def late(environ: Any, start_response: Any) -> Any:
        time.sleep(0.1)
        yield from app(environ, start_response)

    answer = ask(validator(HoldfastMiddleware(validator(late))), method=method, **{DEADLINE: "50"})
    assert answer.error is None
    assert answer.status == "504 Gateway Timeout"
    assert answer.headers["content-type"] == "application/problem+json"
    assert (b"noticed when" in answer.body) is (method == "GET")


@pytest.mark.parametrize("body", [[], iter(())])
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_response_without_a_body_stays_one(status: str, body: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, [])
        return body

    answer = ask(validator(HoldfastMiddleware(validator(app))))
    assert (answer.error, answer.status, answer.parts) == (None, status, [])
    assert "x-request-id" in answer.headers
    assert "content-length" not in answer.headers


def test_a_list_is_handed_on_as_it_is() -> None:
    told: list[Any] = []
    body = HoldfastMiddleware(listing)(environment(), lambda *args: told.append(args) or print)
    assert body == [b"ok"]
    assert told, "servers compute a length of lists"


def test_the_number_of_parts_is_kept_where_it_is_known() -> None:
    body: Any = HoldfastMiddleware(sized)(environment(), lambda *_: print)
    assert len(body) == 1
    body.close()
    assert not hasattr(
        HoldfastMiddleware(generating(b""))(environment(), lambda *_: print), "__len__"
    )


def test_an_empty_part_begins_no_response() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b""
        start_response("200 OK", TEXT)
        yield b"ok"

    assert ask(HoldfastMiddleware(app)).parts == [b"ok"]


def test_close_is_called_once_inside_the_scope_and_outside_of_its_limit() -> None:
    seen: list[Any] = []

    class Body(Sized):
        def close(self) -> None:
            super().close()
            seen.append((holdfast.current().identity.echo_id, holdfast.remaining(), self.closed))

    def app(environ: Any, start_response: Any) -> Body:
        start_response("200 OK", TEXT)
        return Body([b"ok"])

    body: Any = HoldfastMiddleware(app)(
        environment(HTTP_X_REQUEST_ID="me", **{DEADLINE: "500"}), lambda *_: print
    )
    body.close()  # as a server does whose client has gone
    body.close()
    assert seen == [("me", float("inf"), 1)]


def test_a_second_start_response_needs_an_error() -> None:
    def twice(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        with pytest.raises(AssertionError, match="called before"):
            start_response("200 OK", TEXT)
        try:
            raise ValueError
        except ValueError as error:
            start_response("500 Oh", TEXT, (ValueError, error, error.__traceback__))
        return [b"sorry"]

    answer = ask(HoldfastMiddleware(twice))
    assert (answer.status, answer.body) == ("500 Oh", b"sorry")


def test_an_error_after_the_response_began_is_the_servers() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"x"
        try:
            raise ValueError("midway")
        except ValueError as error:
            start_response("500 Oh", TEXT, (ValueError, error, error.__traceback__))

    answer = ask(HoldfastMiddleware(app))
    assert isinstance(answer.error, ValueError)
    assert answer.parts == [b"x"]


@pytest.mark.parametrize("parts", [[], [b"x"]])
def test_an_application_that_starts_no_response_is_told(parts: list[bytes]) -> None:
    answer = ask(HoldfastMiddleware(lambda environ, start_response: parts))
    assert isinstance(answer.error, AssertionError)


def test_a_file_of_the_server_is_handed_on_as_it_is() -> None:
    file = FileWrapper(io.BytesIO(b"file"))

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return file

    told: list[Any] = []
    environ = environment(**{"wsgi.file_wrapper": FileWrapper})
    found = HoldfastMiddleware(app)(environ, lambda *args: told.append(args) or print)
    assert found is file
    assert told[0][0] == "200 OK"


def test_a_file_that_comes_too_late_is_closed() -> None:
    opened = io.BytesIO(b"file")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        time.sleep(0.2)
        return FileWrapper(opened)

    more: Any = {"wsgi.file_wrapper": FileWrapper, DEADLINE: "100"}
    assert ask(HoldfastMiddleware(app), **more).code == 504
    assert opened.closed


class Closing(FileWrapper):
    """A file of the server's that tells when it is closed, and may fail at that."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(io.BytesIO(b"abc"))
        self.closed: list[bool] = []
        self.fails = fails
        self.close = self._close  # that of the base is one of its instances

    def _close(self) -> None:
        self.closed.append(holdfast.remaining() < float("inf"))
        if self.fails:
            raise OSError("as asked")


@pytest.mark.parametrize("how", ["starts nothing", "is refused by the server"])
def test_a_file_whose_response_cannot_begin_is_closed(how: str) -> None:
    file = Closing()

    def app(environ: Any, start_response: Any) -> Any:
        if how != "starts nothing":
            start_response("200 OK", [("Server-Refuses", "this")])
        return file

    def refusing(*_: Any) -> Any:
        raise ValueError("no such header")

    middleware = HoldfastMiddleware(app)
    environ = environment(**{"wsgi.file_wrapper": Closing})
    with pytest.raises((AssertionError, ValueError)):
        middleware(environ, refusing)
    assert file.closed == [True]
    assert holdfast.remaining() == float("inf")


def test_a_late_file_that_cannot_be_closed_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    file = Closing(fails=True)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        time.sleep(0.03)
        return file

    middleware = HoldfastMiddleware(app, policy(request="20ms"))
    assert ask(middleware, **{"wsgi.file_wrapper": Closing}).code == 504
    assert file.closed == [True]
    assert "closing the body" in caplog.text


def test_a_length_that_is_no_length_is_left_alone() -> None:
    for length in ("9" * 5000, "-5"):
        app = generating(b"abc", headers=[*TEXT, ("Content-Length", length)])
        answer = ask(HoldfastMiddleware(app))
        assert (answer.code, answer.body) == (200, b"abc")
        assert answer.headers["content-length"] == length


def test_a_length_that_is_too_small_does_not_lift_the_limit() -> None:
    app = generating(*[b"xx"] * 50, headers=[*TEXT, ("Content-Length", "1")], pause=0.02)
    answer = ask(HoldfastMiddleware(app, policy(request="100ms")))
    assert isinstance(answer.error, holdfast.DeadlineExceeded)
    assert len(answer.parts) < 50


def test_an_event_stream_that_is_written_is_bounded_by_the_idle_limit_alone() -> None:
    def busy(pause: float) -> Any:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            write = start_response("200 OK", EVENTS)
            for _ in range(4):
                write(b"x")
                time.sleep(pause)
            write(b"x")
            return []

        return HoldfastMiddleware(app, policy(request="2s", idle="600ms"))

    assert ask(busy(0.2)).body == b"xxxxx"
    answer = ask(busy(0.8))
    assert isinstance(answer.error, holdfast.DeadlineExceeded)
    assert answer.body == b"x"


def test_the_headers_of_the_application_are_not_changed_in_place() -> None:
    headers = [("Content-Type", "text/plain"), ("X-REQUEST-ID", "own")]
    answer = ask(HoldfastMiddleware(generating(b"x", headers=headers)))
    assert answer.headers["x-request-id"] == "own"
    assert len(headers) == 2


# -- the limit ----------------------------------------------------------------------------------


def test_the_tightest_of_several_deadlines_holds() -> None:
    left: list[float] = []

    def app(environ: Any, start_response: Any) -> Any:
        left.append(holdfast.remaining())
        return listing(environ, start_response)

    middleware = HoldfastMiddleware(app)
    ask(middleware, **{DEADLINE: "5000, 4000"})
    ask(middleware, **{DEADLINE: "much"})
    ask(middleware, **{DEADLINE: "60000"})
    assert 3.5 < left[0] <= 4.0
    assert 9.5 < left[1] <= 10.0
    assert 9.5 < left[2] <= 10.0
    assert middleware.counts == {"malformed_header": 1}


def test_an_expired_request_never_reaches_the_application() -> None:
    middleware = HoldfastMiddleware(None)  # type: ignore[arg-type]
    answer = ask(middleware, **{DEADLINE: "0"})
    assert answer.code == 504
    assert b"not begun" in answer.body
    assert middleware.counts == {"refused.expired": 1, "ended.deadline": 1}


def test_too_little_is_refused() -> None:
    middleware = HoldfastMiddleware(listing, policy(refuse_below="100ms"))
    assert ask(middleware, **{DEADLINE: "50"}).code == 504
    assert middleware.counts["refused.too_little"] == 1
    assert ask(middleware, **{DEADLINE: "5000"}).code == 200


def test_a_late_list_is_a_504_that_says_how_late(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        time.sleep(0.2)
        return listing(environ, start_response)

    middleware = HoldfastMiddleware(app, service="shop")
    with caplog.at_level(logging.INFO, "holdfast.wsgi"):
        answer = ask(middleware, "/orders", **{DEADLINE: "100", "HTTP_X_REQUEST_ID": "me"})
    assert answer.code == 504
    assert answer.headers["x-request-id"] == "me"
    assert answer.headers["deadline-exceeded"].startswith("hop=shop; scope=GET%20/orders; ")
    assert middleware.counts == {"ended.deadline": 1, "overdue": 1}
    (line,) = caplog.messages
    assert line.startswith("504 GET /orders request_id=me: deadline exceeded in scope 'shop:GET")


def test_without_details_nothing_is_told() -> None:
    middleware = HoldfastMiddleware(
        listing, policy_from_mapping({"service": "secret", "headers": {"details": False}})
    )
    assert "server-timing" not in ask(middleware).headers
    answer = ask(middleware, **{DEADLINE: "0"})
    assert answer.headers["deadline-exceeded"] == "1"
    assert b"secret" not in answer.body


@pytest.mark.parametrize("kind", [holdfast.DeadlineExceeded, holdfast.Cancelled])
def test_an_error_of_ours_is_answered(kind: Any) -> None:
    why = CauseKind.DEADLINE if kind is holdfast.DeadlineExceeded else CauseKind.OVERLOAD

    def app(environ: Any, start_response: Any) -> Any:
        raise kind(Cause(why, "charge"))

    middleware = HoldfastMiddleware(app, service="shop", retry_after=7)
    answer = ask(middleware)
    if why is CauseKind.DEADLINE:
        assert answer.status == "504 Gateway Timeout"
    else:
        assert answer.status == "503 Service Unavailable"
        assert answer.headers["retry-after"] == "7"
    assert b'"hop": "shop"' in answer.body
    assert middleware.counts == {f"ended.{why}": 1}


def test_a_shutdown_is_counted_as_turned_away() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise holdfast.Cancelled(Cause(CauseKind.SHUTDOWN, "process"))

    middleware = HoldfastMiddleware(app)
    assert ask(middleware).code == 503
    assert middleware.counts == {"turned_away": 1, "ended.shutdown": 1}


def test_a_framework_that_hands_the_error_on_is_understood() -> None:
    def app(environ: Any, start_response: Any) -> Any:  # as Bottle does it
        try:
            with holdfast.timeout(0.001):
                time.sleep(0.01)
        except holdfast.DeadlineExceeded as error:
            start_response("500 Oh", TEXT, (type(error), error, error.__traceback__))
        return [b"a page"]

    assert ask(HoldfastMiddleware(app)).code == 504


def test_an_error_that_was_raised_from_ours_is_understood() -> None:
    ours = holdfast.DeadlineExceeded(Cause(CauseKind.DEADLINE, "SELECT"))
    theirs = RuntimeError("OperationalError")
    theirs.__cause__ = ours
    assert cause_behind(theirs) is ours.cause
    assert cause_behind(RuntimeError()) is None
    assert cause_behind(None) is None
    circle = RuntimeError()
    circle.__cause__ = circle
    assert cause_behind(circle) is None


def test_an_error_of_the_application_passes_and_is_noted_when_late() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        time.sleep(0.1)
        raise ValueError("a bug")

    for budget, notes in (("5000", 0), ("50", 1)):
        answer = ask(HoldfastMiddleware(app), **{DEADLINE: budget})
        assert isinstance(answer.error, ValueError)
        assert len(getattr(answer.error, "__notes__", ())) == notes


def test_an_exit_passes() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise SystemExit(1)

    assert isinstance(ask(HoldfastMiddleware(app)).error, SystemExit)


def test_a_writer_is_told_that_it_is_late() -> None:
    seen: list[BaseException] = []

    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        if environ["PATH_INFO"] == "/begun":
            write(b"x")
        time.sleep(0.25)
        try:
            write(b"y")
        except holdfast.DeadlineExceeded as error:
            seen.append(error)
            raise
        return []

    middleware = HoldfastMiddleware(app)
    assert ask(middleware, **{DEADLINE: "150"}).code == 504
    answer = ask(middleware, "/begun", **{DEADLINE: "150"})
    assert answer.parts == [b"x"]
    assert answer.error is seen[1], "it is cut"
    assert middleware.counts["ended.deadline"] == 2


def test_a_writer_of_a_page_about_ours_is_told() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        try:
            with holdfast.timeout(0.001):
                time.sleep(0.01)
        except holdfast.DeadlineExceeded:
            write = start_response("500 Oh", TEXT)
            write(b"")  # an empty part begins nothing
            write(b"a page")
        return []

    assert ask(HoldfastMiddleware(app)).code == 504


def test_a_writer_whose_list_comes_late_is_cut() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)(b"x")
        time.sleep(0.25)
        return [b"y"]

    answer = ask(HoldfastMiddleware(app), **{DEADLINE: "150"})
    assert answer.parts == [b"x"]
    assert isinstance(answer.error, holdfast.DeadlineExceeded)


# -- bodies -------------------------------------------------------------------------------------


def test_a_begun_body_is_cut() -> None:
    middleware = HoldfastMiddleware(generating(*[b"x"] * 50, pause=0.01))
    answer = ask(middleware, **{DEADLINE: "200"})
    assert answer.status == "200 OK"
    assert len(answer.parts) < 50
    assert isinstance(answer.error, holdfast.DeadlineExceeded)
    assert middleware.counts == {"ended.deadline": 1}


def test_a_client_that_reads_slowly_is_cut() -> None:
    answer = ask(
        HoldfastMiddleware(generating(b"a", b"b")),
        between=lambda: time.sleep(0.25),
        **{DEADLINE: "150"},
    )
    assert answer.parts == [b"a"]
    assert isinstance(answer.error, holdfast.DeadlineExceeded)


def test_a_body_that_is_complete_by_its_length_is_not_cut() -> None:
    app = generating(b"ab", headers=[*TEXT, ("Content-Length", "2")])
    answer = ask(HoldfastMiddleware(app), between=lambda: time.sleep(0.25), **{DEADLINE: "150"})
    assert answer.error is None
    assert answer.body == b"ab"


def test_an_error_of_ours_in_a_begun_body_is_told_and_passes() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"x"
        with holdfast.timeout(0.001):
            time.sleep(0.01)

    middleware = HoldfastMiddleware(app)
    answer = ask(middleware)
    assert answer.parts == [b"x"]
    assert isinstance(answer.error, holdfast.DeadlineExceeded)
    assert middleware.counts == {"ended.deadline": 1}


def test_an_error_before_the_first_part_is_answered() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        with holdfast.timeout(0.001):
            time.sleep(0.01)
        yield b"x"

    assert ask(HoldfastMiddleware(app)).code == 504

    def buggy(environ: Any, start_response: Any) -> Iterator[bytes]:
        raise ValueError
        yield b""

    assert isinstance(ask(HoldfastMiddleware(buggy)).error, ValueError)


def test_a_stream_has_the_limit_of_its_caller_and_an_idle_one() -> None:
    middleware = HoldfastMiddleware(
        generating(*[b"x"] * 5, headers=EVENTS, pause=0.05), policy(request="150ms", idle="10s")
    )
    answer = ask(middleware)
    assert len(answer.parts) == 5, "its total limit is lifted"
    answer = ask(middleware, **{DEADLINE: "150"})
    assert isinstance(answer.error, holdfast.DeadlineExceeded), "not that of the caller"
    middleware.policy = policy(request="150ms", idle="5ms")
    answer = ask(middleware)
    assert "nothing was sent for 5 ms" in str(answer.error)


def test_a_route_that_is_a_stream_bounds_each_wait_by_the_idle_limit() -> None:
    left: list[float] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for _ in range(3):
            left.append(holdfast.remaining())
            yield b"x"

    routes = [{"path": "/events", "stream": True, "idle": "7s"}]
    ask(HoldfastMiddleware(app, policy_from_mapping({"routes": routes})), "/events")
    assert all(6 < each <= 7 for each in left)
    routes = [{"path": "/events", "stream": False}]
    answer = ask(
        HoldfastMiddleware(
            generating(*b"xxxxx", headers=EVENTS, pause=0.05),
            policy_from_mapping({"timeouts": {"request": "150ms"}, "routes": routes}),
        ),
        "/events",
    )
    assert answer.error is not None


def test_a_scope_of_a_body_is_open_from_part_to_part() -> None:
    left: list[float] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        with holdfast.timeout(2.0):
            yield b"a"
            left.append(holdfast.remaining())
            yield b"b"
        left.append(holdfast.remaining())

    assert ask(HoldfastMiddleware(app)).body == b"ab"
    assert left[0] < 2.1 < 9 < left[1]


# -- contexts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_between_two_parts_and_afterwards_the_thread_has_no_scope(whole: bool) -> None:
    inside: list[str] = []
    outside: list[str] = []

    class Body(Sized):
        def __iter__(self) -> Iterator[bytes]:
            for part in self.parts:
                inside.append(holdfast.current().scope)
                yield part

        def close(self) -> None:
            inside.append(holdfast.current().scope)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [b"ok"] if whole else Body([b"a", b"b"])

    def look() -> None:
        outside.append(holdfast.current().scope)

    middleware = HoldfastMiddleware(app)
    for _ in range(2):
        assert ask(middleware, between=look).error is None
        look()
    assert inside == ([] if whole else ["GET /"] * 6)
    assert set(outside) == {""}


def test_other_context_variables_are_left_alone() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        token = VAR.set("of the body")
        yield VAR.get().encode()
        VAR.reset(token)  # only in the context in which it was set
        yield VAR.get().encode()

    assert ask(HoldfastMiddleware(app)).parts == [b"of the body", b"unset"]


def test_tests_of_flask_applications_look_into_the_request_afterwards() -> None:
    app = flask.Flask("shop")
    app.secret_key = "of a test"
    app.wsgi_app = HoldfastMiddleware(app.wsgi_app)  # type: ignore[method-assign]

    @app.get("/")
    def view() -> Any:
        flask.session["user"] = holdfast.current().identity.echo_id

        def parts() -> Iterator[str]:
            yield flask.request.path
            yield holdfast.current().scope

        return flask.Response(flask.stream_with_context(parts()))

    with app.test_client() as client:
        assert client.get("/", headers={"x-request-id": "me"}).text == "/GET /"
        assert flask.session["user"] == "me"
        assert flask.request.path == "/"


def test_a_body_that_is_never_closed_leaks_nothing() -> None:
    middleware = HoldfastMiddleware(generating(b"x", b"y"))
    body: Any = middleware(environment(), lambda *_: print)
    next(body)
    gone = weakref.ref(body._exchange)
    del body
    gc.collect()
    assert gone() is None
    assert holdfast.current().scope == ""
    assert ask(middleware).body == b"xy"


def test_work_that_outlives_the_request_keeps_who_it_was() -> None:
    seen: list[Any] = []
    over = threading.Event()

    def work() -> None:
        over.wait(5)
        seen.append((holdfast.remaining(), holdfast.current().identity.echo_id))

    def app(environ: Any, start_response: Any) -> Any:
        thread = threading.Thread(target=contextvars.copy_context().run, args=[work])
        thread.start()
        threads.append(thread)
        return listing(environ, start_response)

    threads: list[threading.Thread] = []
    ask(HoldfastMiddleware(app), HTTP_X_REQUEST_ID="me")
    over.set()
    threads[0].join()
    assert seen[0][0] == float("inf")


def test_inside_of_another_server_carrier_the_context_is_that_one() -> None:
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append((holdfast.current().identity.echo_id, holdfast.remaining()))
        return listing(environ, start_response)

    who = Carried(Identity("a" * 32, "b" * 16))
    with use(who), holdfast.timeout(3.0):
        answer = ask(HoldfastMiddleware(app), HTTP_X_REQUEST_ID="another")
    assert seen[0][0] == "a" * 32
    assert seen[0][1] <= 3.0
    assert "x-request-id" not in answer.headers
    assert "server-timing" not in answer.headers


def test_what_is_around_may_be_over_already() -> None:
    middleware = HoldfastMiddleware(listing)
    with contextlib.suppress(TimeoutError), holdfast.timeout(0.01):
        time.sleep(0.02)
        assert ask(middleware).code == 504
    assert middleware.counts == {"refused.expired": 1, "ended.deadline": 1}


async def test_what_is_around_may_have_ended() -> None:
    middleware = HoldfastMiddleware(listing)
    async with holdfast.scope("a request of the server around"):
        context = contextvars.copy_context()
    answer = await asyncio.to_thread(context.run, ask, middleware)
    assert answer.code == 200
    with contextlib.suppress(holdfast.Cancelled):
        async with holdfast.scope("one that was cancelled") as scope:
            context = contextvars.copy_context()
            scope.cancel("for this test")
            await asyncio.sleep(1.0)
    answer = await asyncio.to_thread(context.run, ask, middleware)
    assert answer.code == 503
    assert middleware.counts["refused.cancelled"] == 1


async def test_a_test_may_call_it_in_a_coroutine() -> None:
    async with holdfast.timeout(3.0):
        answer = ask(HoldfastMiddleware(generating(b"ok")))
    assert answer.body == b"ok"


# -- modes --------------------------------------------------------------------------------------


def test_observing_cuts_nothing_and_counts() -> None:
    observing = replace(policy(request="20ms"), mode="observe")
    middleware = HoldfastMiddleware(generating(b"x", b"y", pause=0.02), observing)
    answer = ask(middleware, **{DEADLINE: "10"})
    assert answer.error is None
    assert answer.body == b"xy"
    assert middleware.counts == {"would_exceed": 1}
    middleware = HoldfastMiddleware(listing, observing)
    assert ask(middleware).code == 200
    assert middleware.counts["would_exceed"] == 0


def test_observing_a_stream_still_keeps_to_what_is_around() -> None:
    routes = [{"path": "/", "stream": True}]
    observing = replace(policy_from_mapping({"routes": routes}), mode="observe")
    middleware = HoldfastMiddleware(generating(b"x", b"y", pause=0.2), observing)
    with contextlib.suppress(TimeoutError), holdfast.timeout(0.1):
        answer = ask(middleware)
        assert answer.parts == [b"x"]
        assert isinstance(answer.error, holdfast.DeadlineExceeded)


def test_off_is_out_of_the_way() -> None:
    middleware = HoldfastMiddleware(listing, replace(policy(), mode="off"))
    answer = ask(middleware, **{DEADLINE: "0"})
    assert answer.code == 200
    assert "x-request-id" not in answer.headers


def test_the_policy_may_be_replaced() -> None:
    middleware = HoldfastMiddleware(listing, service="shop")
    middleware.policy = policy(refuse_below="1s")
    assert ask(middleware, **{DEADLINE: "100"}).code == 504
    assert middleware.policy.service == "shop"
    with pytest.raises(TypeError, match="policy_from_mapping"):
        middleware.policy = {}  # type: ignore[assignment]


# -- the environment ----------------------------------------------------------------------------


def test_the_path_is_the_whole_one_and_decoded() -> None:
    assert path_of({"SCRIPT_NAME": "/shop", "PATH_INFO": "/a"}) == "/shop/a"
    assert path_of({"PATH_INFO": "/caf\xc3\xa9"}) == "/café"
    assert path_of({"PATH_INFO": "/\xff"}) == "/\ufffd"
    assert path_of({}) == "/"


@pytest.mark.parametrize(
    ("said", "waited"),
    [
        ("t=1000000000.250", 0.75),
        ("1000000000250", 0.75),
        ("t=1000000000250000", 0.75),
        (" 1000000002 ", 0.0),
        ("t=12", None),
        ("1e9", None),
        ("-1000000000", None),
        ("", None),
        ("t=", None),
        ("9" * 40, None),
    ],
)
def test_what_a_proxy_says_is_read_in_every_unit(said: str, waited: float | None) -> None:
    found = waited_since(said, 1_000_000_001.0)
    assert found == (waited if waited is None else pytest.approx(waited))


def test_a_header_of_a_proxy_counts_only_where_it_is_trusted() -> None:
    said = f"t={time.time() - 5:.3f}"
    assert (
        ask(HoldfastMiddleware(listing), HTTP_X_REQUEST_START=said, **{DEADLINE: "3000"}).code
        == 200
    )
    trusting = HoldfastMiddleware(listing, arrival_header="X-Request-Start")
    assert ask(trusting, HTTP_X_REQUEST_START=said, **{DEADLINE: "3000"}).code == 504
    assert ask(trusting, HTTP_X_REQUEST_START="yesterday").code == 200
    assert trusting.counts["malformed_header"] == 1


def test_an_instant_in_the_environment_counts() -> None:
    middleware = HoldfastMiddleware(listing)
    more: Any = {"holdfast.arrival": monotonic() - 2, DEADLINE: "1000"}
    assert ask(middleware, **more).code == 504
    assert arrival_of({"holdfast.arrival": 7.0}, 5.0, "") == (5.0, False)


def test_the_kernel_tells_how_long_a_request_has_waited() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.1)
        sock, _ = listener.accept()
        with sock:
            at, _ = arrival_of({"gunicorn.socket": sock}, 100.0, "")
            assert 90 < at <= 100 - 0.05
        closed, _ = arrival_of({"gunicorn.socket": sock}, 100.0, "")
        assert closed == 100.0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert arrival_of({"gunicorn.socket": ours}, 100.0, "") == (100.0, False)
