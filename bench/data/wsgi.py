"""What a middleware of WSGI adds to one request, without a server.

The application is called as a server calls it: environment made, parts iterated, `close()` called.
Bare, with ours, and with ProxyFix of Werkzeug for scale, which rewrites the environment and no
more. Once as an application of three lines, once as a Flask view.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from wsgiref.util import setup_testing_defaults

from bench._harness import Case, Check, Table, Tell, absent, compare, duel, new_loop, rounds

__all__ = ["VARIANTS", "measure"]

BARE: Final = "bare application"
OURS: Final = "HoldfastMiddleware"
NAMED: Final = "HoldfastMiddleware, the caller sends deadline, trace and request id"
PROXY: Final = "Werkzeug ProxyFix"
GOAL: Final = 15e-6
BATCH: Final = 16
_PLAIN: Final = ("list", "iterable")
VARIANTS: Final[list[dict[str, Any]]] = [
    {"app": app} for app in (*_PLAIN, *(() if absent("flask") else ("Flask",)))
]

App = Callable[[dict[str, Any], Any], Any]
_HEADERS: Final = [("Content-Type", "text/plain"), ("Content-Length", "2")]


def _environ(**more: str) -> dict[str, Any]:
    environ: dict[str, Any] = {
        "HTTP_HOST": "orders.local",
        "HTTP_USER_AGENT": "bench",
        "HTTP_ACCEPT": "*/*",
        "HTTP_ACCEPT_ENCODING": "gzip",
        "HTTP_CONNECTION": "keep-alive",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/orders/42",
        "REMOTE_ADDR": "10.0.0.1",
    } | more
    setup_testing_defaults(environ)
    return environ


_SENT: Final = {
    "HTTP_X_ENVOY_EXPECTED_RQ_TIMEOUT_MS": "30000",
    "HTTP_X_REQUEST_ID": "4bf92f3577b34da6a3ce929d0e0e4736",
    "HTTP_TRACEPARENT": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


class _Parts:
    """A body as frameworks return it: iterated, then closed."""

    def __iter__(self) -> Any:
        return iter((b"ok",))

    def close(self) -> None: ...


def _listing(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", _HEADERS)
    return [b"ok"]


def _iterable(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", _HEADERS)
    return _Parts()


def _flask() -> App:
    import flask

    app = flask.Flask("bench")

    def order(key: str) -> str:
        return key

    app.add_url_rule("/orders/<key>", view_func=order)
    found: App = app.wsgi_app
    return found


def _served(app: App, environ: dict[str, Any]) -> Callable[[int], Awaitable[object]]:
    def write(data: bytes) -> None: ...

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        if not status.startswith("200"):
            raise RuntimeError(status)
        return write

    async def run(batches: int) -> None:
        for _ in range(batches * BATCH):
            body = app(dict(environ), start_response)
            for _part in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()

    return run


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    from holdfast.adapters.wsgi import HoldfastMiddleware

    logging.disable(logging.CRITICAL)
    which: str = variant["app"]
    app = {"list": lambda: _listing, "iterable": lambda: _iterable, "Flask": _flask}[which]()
    table = Table(f"One request through WSGI: {which}", "us", ["request"], ratio=False)
    cases = [
        Case(BARE, _served(app, _environ())),
        Case(OURS, _served(HoldfastMiddleware(app), _environ())),
        Case(NAMED, _served(HoldfastMiddleware(app), _environ(**_SENT))),
    ]
    if absent("werkzeug"):
        table.notes.append("absent: werkzeug")
    else:
        from werkzeug.middleware.proxy_fix import ProxyFix

        forwarded = {"HTTP_X_FORWARDED_FOR": "10.0.0.9", "HTTP_X_FORWARDED_PROTO": "https"}
        cases.append(Case(PROXY, _served(ProxyFix(app), _environ(**forwarded))))
    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        cells = runner.run(duel(cases, rounds(quick, 60), tell, which))
    compare(table, "request", {name: cell.per(BATCH) for name, cell in cells.items()})
    base = table.cell(BARE, "request")
    for name in (OURS, NAMED):
        added = table.cell(name, "request").less(base)
        table.checks.append(Check(f"{name} adds", added, GOAL, "us"))
    return [table]
