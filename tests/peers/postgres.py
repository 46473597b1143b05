"""PostgreSQL, and pgbouncer in front of it in transaction mode."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.peers.process import answers, as_user, free_port, home, program, running, user_for

USER = "holdfast"
CONNECTIONS = 400


@dataclass(frozen=True)
class Postgres:
    """A server that believes everybody who comes over loopback.

    Attributes:
        host: address.
        port: of TCP.
        user: name of its superuser.
        database: name of its database.
    """

    port: int
    host: str = "127.0.0.1"
    user: str = USER
    database: str = "postgres"

    def dsn(self, *, port: int | None = None, scheme: str = "postgresql") -> str:
        """A URL for it; `port` is that of a proxy in between."""
        return f"{scheme}://{self.user}@{self.host}:{port or self.port}/{self.database}"

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query, by a connection that has nothing to do with what is tested."""
        with psycopg.connect(
            host=self.host, port=self.port, user=self.user, dbname=self.database, autocommit=True
        ) as connection:
            cursor = connection.execute(query, values or None)
            return cursor.fetchall() if cursor.description is not None else []

    def backends(self, name: str = "") -> int:
        """How many clients it has, besides the one that asks; of that `application_name`."""
        clients = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        if name:
            return len(
                self.ask(
                    f"SELECT 1 FROM pg_stat_activity WHERE {clients} AND application_name = %s",
                    name,
                )
            )
        return len(self.ask(f"SELECT 1 FROM pg_stat_activity WHERE {clients}"))

    def at_work(self, part: str) -> int:
        """How many statements run now that have `part` in their text."""
        return len(
            self.ask(
                "SELECT 1 FROM pg_stat_activity WHERE state = 'active' "
                "AND pid <> pg_backend_pid() AND position(%s IN query) > 0",
                part,
            )
        )


@contextmanager
def postgres_running() -> Iterator[Postgres]:
    """A server of its own, without fsync."""
    binaries = Path(program("postgres", "/usr/lib/postgresql/*/bin/postgres")).parent
    owner = user_for("postgres")
    port = free_port()
    with home(owner) as place:
        data, log = place / "data", place / "log"
        made = subprocess.run(
            as_user(owner, str(binaries / "initdb"), "-D", str(data), "-U", USER, "-A", "trust",
                    "--no-sync", "-E", "UTF8", "--locale=C"),
            capture_output=True, check=False, cwd=place,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr.decode()
        settings = {
            "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off",
            "listen_addresses": "127.0.0.1", "port": port, "max_connections": CONNECTIONS,
            "unix_socket_directories": "", "shared_buffers": "32MB", "autovacuum": "off",
        }  # fmt: skip
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        command = as_user(owner, str(binaries / "postgres"), "-D", str(data), *options)
        ready = str(binaries / "pg_isready")

        def is_ready() -> bool:
            asked = [ready, "-q", "-h", "127.0.0.1", "-p", str(port)]
            return subprocess.run(asked, check=False).returncode == 0

        # SIGINT: it does not wait for its clients to leave.
        with running(command, ready=is_ready, log=log, stop=signal.SIGINT, cwd=place):
            yield Postgres(port)


@contextmanager
def pgbouncer_running(server: Postgres) -> Iterator[Postgres]:
    """pgbouncer in transaction mode, with two connections to the server for all its clients."""
    binary = program("pgbouncer", "/usr/sbin/pgbouncer")
    owner = user_for("postgres")
    port = free_port()
    with home(owner) as place:
        users, settings = place / "users", place / "settings"
        users.write_text(f'"{server.user}" ""\n')
        settings.write_text(
            f"[databases]\n* = host={server.host} port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\npool_mode = transaction\n"
            "default_pool_size = 2\nmax_client_conn = 500\nserver_reset_query =\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        with running(
            as_user(owner, binary, str(settings)), ready=lambda: answers(port), log=place / "log"
        ):
            yield Postgres(port)
