"""A Flask and a Django application that do the same, each in a middleware of its own.

Served by a process of a WSGI server: `/flask/...`, `/django/...` and `/plain/...` of `app`.

    /context            who the request is, and what is left
    /requests/PATH      asks the upstream for PATH by requests; /httpx/PATH by httpx
    /picky              asks by a client that needs more than there is
    /sleep/SECONDS      sleeps, in no client
    /inner              a scope of its own that is over before the request is
    /kind/PATH          asks, and makes its own page with a 200 of the error
    /boom               fails
    /drip/N/PAUSE       N parts, with a pause before each but the first
    /big/SIZE           a body of its own length, by a generator
    /file               a file, as the server sends files
    /async/SECONDS      a coroutine that sleeps in a scope
    /sql/SECONDS        sleeps in PostgreSQL; Django only, and only with `DATABASE`
    /counts             what the middleware has counted, and which views began
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import django.db
import flask
import httpx
import requests
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path as route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import holdfast
from holdfast.adapters.httpx import instrument as instrument_httpx
from holdfast.adapters.requests import instrument as instrument_requests
from holdfast.adapters.wsgi import HoldfastMiddleware
from holdfast.domain.policy import policy_from_mapping

UPSTREAM = os.environ.get("UPSTREAM", "")
POLICY = policy_from_mapping(
    {
        "timeouts": {"request": "10s"},
        "identity": {"trust_stage": True},
        "routes": [
            {"path": "/flask/sleep/*", "request": "400ms"},
            {"path": "/django/sleep/*", "request": "400ms"},
            {"path": "/plain/sleep/*", "request": "400ms"},
        ],
    }
)

session = requests.Session()
session.trust_env = False
instrument_requests(session, service="orders")
picky = requests.Session()
picky.trust_env = False
instrument_requests(picky, service="orders", refuse_below=30.0)
client = instrument_httpx(httpx.Client(trust_env=False), service="orders")

begun: list[str] = []
LONG = 65_536
FILE = Path(__file__).parents[2] / "src/holdfast/adapters/wsgi/exchange.py"

Answer = tuple[str | Iterator[bytes], dict[str, str]]


def _context(_: str) -> Answer:
    here = holdfast.current()
    identity = here.identity
    found = {
        "left": holdfast.remaining(),
        "trace": identity.trace_id,
        "id": identity.echo_id,
        "parent": identity.parent_id,
        "stage": here.stage,
        "baggage": dict(here.baggage),
        "scope": here.scope,
    }
    return json.dumps(found), {}


def _kind(rest: str) -> Answer:
    try:
        session.get(f"{UPSTREAM}/{rest}")
    except holdfast.DeadlineExceeded as error:
        return f"sorry: {error}", {}
    return "in time", {}


def _sleep(rest: str) -> Answer:
    time.sleep(float(rest))
    return "awake", {}


def _inner(_: str) -> Answer:
    with holdfast.timeout(0.01, name="charge"):
        time.sleep(0.03)
    return "unreached", {}


def _boom(_: str) -> Answer:
    raise ValueError("a bug of the application")


def _drip(rest: str) -> Answer:
    count, pause = rest.split("/")

    def parts() -> Iterator[bytes]:
        for index in range(int(count)):
            time.sleep(float(pause) if index else 0)
            yield f"{index} {holdfast.current().identity.echo_id}\n".encode()

    return parts(), {}


def _big(rest: str) -> Answer:
    size = int(rest)
    return (b"x" * min(LONG, size - at) for at in range(0, size, LONG)), {
        "Content-Length": str(size)
    }


async def _view(rest: str) -> str:
    async with holdfast.scope("view"):
        await asyncio.sleep(float(rest))
    return str(_context("")[0])


def _sql(rest: str) -> Answer:
    with django.db.connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s), 'slept'", [float(rest)])
        return cursor.fetchone()[1], {}


DO: dict[str, Callable[[str], Answer]] = {
    "context": _context,
    "requests": lambda rest: (session.get(f"{UPSTREAM}/{rest}").text, {}),
    "httpx": lambda rest: (client.get(f"{UPSTREAM}/{rest}").text, {}),
    "picky": lambda rest: (picky.get(f"{UPSTREAM}/ok").text, {}),
    "sleep": _sleep,
    "inner": _inner,
    "kind": _kind,
    "boom": _boom,
    "drip": _drip,
    "big": _big,
    "sql": _sql,
}


def do(rest: str, middleware: HoldfastMiddleware) -> Answer:
    what, _, rest = rest.partition("/")
    if what == "counts":
        counts = json.dumps({"counts": middleware.counts, "begun": Counter(begun)})
        return counts, {}
    begun.append(f"{what}/{rest}")
    return DO[what](rest)


# -- Flask --------------------------------------------------------------------------------------

flask_app = flask.Flask("shop")
flask_app.wsgi_app = of_flask = HoldfastMiddleware(  # type: ignore[method-assign]
    flask_app.wsgi_app, POLICY, service="flask", arrival_header="X-Request-Start"
)


@flask_app.route("/file")
def flask_file() -> Any:
    return flask.send_file(FILE)


@flask_app.route("/async/<rest>")
async def flask_async(rest: str) -> Any:
    return await _view(rest)


@flask_app.route("/<path:rest>")
def flask_view(rest: str) -> Any:
    body, headers = do(rest, of_flask)
    return flask.Response(body, headers=headers, mimetype="text/plain")


# -- Django -------------------------------------------------------------------------------------


def django_view(request: Any, rest: str) -> Any:
    body, headers = do(rest, of_django)
    kind = HttpResponse if isinstance(body, str) else StreamingHttpResponse
    return kind(body, headers=headers, content_type="text/plain")


def django_file(_: Any) -> Any:
    return FileResponse(FILE.open("rb"))


async def django_async(_: Any, rest: str) -> Any:
    return HttpResponse(await _view(rest))


urlpatterns = [
    route("file", django_file),
    route("async/<rest>", django_async),
    route("<path:rest>", django_view),
]


def _databases() -> dict[str, Any]:
    where = os.environ.get("DATABASE", "")
    if not where:
        return {}
    from holdfast.adapters.psycopg import Connection

    pool = {"connection_class": Connection, "min_size": 1, "max_size": 4}
    return {
        "default": json.loads(where)
        | {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"pool": pool}}
    }


settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of a test",
    LOGGING_CONFIG=None,
    DATABASES=_databases(),
)
django.setup()
django_app = of_django = HoldfastMiddleware(
    get_wsgi_application(), POLICY, service="django", arrival_header="X-Request-Start"
)


# -- neither ------------------------------------------------------------------------------------


def _plain(environ: dict[str, Any], start_response: Any) -> Any:
    body, headers = do(environ["PATH_INFO"][1:], of_plain)
    start_response("200 OK", [("Content-Type", "text/plain"), *headers.items()])
    return [body.encode()] if isinstance(body, str) else body


plain_app = of_plain = HoldfastMiddleware(
    _plain, POLICY, service="plain", arrival_header="X-Request-Start"
)


app = DispatcherMiddleware(
    plain_app, {"/flask": flask_app, "/django": django_app, "/plain": plain_app}
)
