"""asyncpg over TLS: what is taken out of the answers, and the request that ends a statement."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import trustme

import holdfast
from holdfast.adapters.asyncpg import connect
from tests.adapters.test_asyncpg import BOTH, PATIENCE, TOLD, none_at_work
from tests.peers.postgres import Postgres, postgres_running


@pytest.fixture(scope="module")
def secured() -> Iterator[tuple[Postgres, ssl.SSLContext]]:
    """A server of its own that speaks TLS."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    with postgres_running() as server:
        ((place,),) = server.ask("SHOW data_directory")
        owner = os.stat(place)
        key, chain = Path(place) / "server.key", Path(place) / "server.crt"
        certificate.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        for path in (key, chain):
            path.chmod(0o600)
            shutil.chown(path, owner.st_uid, owner.st_gid)
        server.ask("ALTER SYSTEM SET ssl = on")
        server.ask("SELECT pg_reload_conf()")
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
        yield server, context


@pytest.mark.real_time(*BOTH)
async def test_over_tls_it_is_the_same(secured: tuple[Postgres, ssl.SSLContext]) -> None:
    server, context = secured
    async with holdfast.timeout(PATIENCE):
        while True:  # the server takes its time to read its settings again
            try:
                connection = await connect(server.dsn(), ssl=context)
                break
            except (OSError, asyncpg.PostgresError):
                continue
    try:
        ((encrypted,),) = await connection.fetch(
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        assert encrypted
        for budget in (30.0, 2.0, 20.0):
            async with holdfast.timeout(budget), connection.transaction():
                assert budget * 800 <= await connection.fetchval(TOLD) <= budget * 1126
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.2):
                await connection.fetch("SELECT pg_sleep(95)")
        await none_at_work(server, "pg_sleep(95)")
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()
