"""Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.peers.process import answers, as_user, free_port, home, program, running


@dataclass(frozen=True)
class RedisServer:
    """A server without a password that keeps nothing.

    Attributes:
        port: of TCP.
        host: address.
    """

    port: int
    host: str = "127.0.0.1"

    def url(self, *, port: int | None = None) -> str:
        """A URL for it; `port` is that of a proxy in between."""
        return f"redis://{self.host}:{port or self.port}/0"


@contextmanager
def redis_running(*options: str, port: int = 0) -> Iterator[RedisServer]:
    """A server of its own.

    Args:
        options: as on its command line, for example `--requirepass x`.
        port: a free one when 0; that of one that was ended, for one that comes back.
    """
    binary = program("redis-server")
    port = port or free_port()
    with home(None) as place:
        command = [
            binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no",
            "--dir", str(place), "--maxclients", "3000", "--enable-debug-command", "yes", *options,
        ]  # fmt: skip
        with running(as_user(None, *command), ready=lambda: answers(port), log=place / "log"):
            yield RedisServer(port)
