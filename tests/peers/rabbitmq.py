"""RabbitMQ. It takes some seconds to start."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import answers, as_user, free_port, home, program, running, user_for


@dataclass(frozen=True)
class RabbitMQ:
    """A server with its guest.

    Attributes:
        port: of AMQP.
        host: address.
    """

    port: int
    host: str = "127.0.0.1"

    def url(self, *, port: int | None = None) -> str:
        """A URL for it; `port` is that of a proxy in between."""
        return f"amqp://guest:guest@{self.host}:{port or self.port}/"


@contextmanager
def rabbitmq_running() -> Iterator[RabbitMQ]:
    """A node of its own, with a port mapper of its own, on loopback only."""
    launcher = program("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")
    # What Debian puts in front of it insists on a user and a place of its own.
    real = "/usr/lib/rabbitmq/bin/rabbitmq-server"
    launcher = real if Path(real).exists() else launcher
    owner = user_for("rabbitmq")
    port, dist, mapper = free_port(), free_port(), free_port()
    with home(owner) as place:
        settings = place / "rabbitmq.conf"
        settings.write_text(
            f"listeners.tcp.local = 127.0.0.1:{port}\nloopback_users = none\n"
            "log.console = true\nlog.file = false\ndisk_free_limit.absolute = 50MB\n"
        )
        plugins = place / "enabled_plugins"
        plugins.write_text("[].\n")
        env = {
            "HOME": str(place),
            "RABBITMQ_NODENAME": f"holdfast{port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(place / "mnesia"),
            "RABBITMQ_LOG_BASE": str(place),
            "RABBITMQ_CONFIG_FILE": str(settings),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_PID_FILE": str(place / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
        }
        epmd = shutil.which("epmd")
        assert epmd is not None, "epmd comes with Erlang, and is missing"
        with (
            running(
                as_user(owner, epmd, "-port", str(mapper), "-address", "127.0.0.1"),
                ready=lambda: answers(mapper), log=place / "epmd", stop=signal.SIGKILL, env=env,
            ),
            running(
                as_user(owner, launcher), ready=lambda: answers(port), log=place / "log",
                env=env, cwd=place,
            ),
        ):  # fmt: skip
            yield RabbitMQ(port)
