"""The database layer of Django within the deadline of a request, by its own pool of connections."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.adapters.asgi_peers import DEADLINE
from tests.adapters.wsgi_peers import PATIENCE, Gunicorn, gunicorn
from tests.peers.postgres import Postgres

pytestmark = pytest.mark.system

ENDED = 5.0
"""Seconds that tell "it ended" from "it never does", on a busy machine too."""


@pytest.fixture(scope="module", name="served")
def served_by_gunicorn(postgres: Postgres) -> Iterator[Gunicorn]:
    where = {"NAME": postgres.database, "USER": postgres.user, "HOST": postgres.host}
    with gunicorn("gthread", database=json.dumps(where | {"PORT": postgres.port})) as served:
        yield served


def _asleep(postgres: Postgres) -> int:
    return len(
        postgres.ask(
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%%pg_sleep%%' AND state = 'active' "
            "AND pid <> pg_backend_pid()"
        )
    )


def test_a_query_ends_at_the_server_with_the_deadline(served: Gunicorn, postgres: Postgres) -> None:
    assert served.ask("/django/sql/0")[2] == b"slept"
    began = time.monotonic()
    status, headers, body = served.ask("/django/sql/60", f"{DEADLINE}: 500")
    assert time.monotonic() - began < ENDED
    assert status == 504, served.log()
    assert "deadline-exceeded" in headers
    document = json.loads(body)
    assert document["hop"] == "django"
    assert document["scope"].startswith("GET /django/sql/60")
    end = time.monotonic() + PATIENCE
    while _asleep(postgres):
        assert time.monotonic() < end, "the statement goes on at the server"
        time.sleep(0.02)
    assert served.ask("/django/sql/0")[2] == b"slept"


def test_connections_of_the_pool_are_usable_after_many_ends(
    served: Gunicorn, postgres: Postgres
) -> None:
    found: list[int] = []

    def ask() -> None:
        found.extend(served.ask("/django/sql/60", f"{DEADLINE}: 100")[0] for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [504] * 20
    assert [served.ask("/django/sql/0")[2] for _ in range(8)] == [b"slept"] * 8
