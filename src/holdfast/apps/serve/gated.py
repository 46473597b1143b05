"""The servers of `holdfast serve --server`, other than uvicorn: the application behind a gate.

Their connections cannot be reached as those of uvicorn can. What that costs is in the table of
`docs/how-to/embed.md`, and whoever chooses one should know it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, TypeAlias

from holdfast.adapters.asgi import Gate, Lifespan
from holdfast.adapters.asgi.types import App
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.problem import ServeError
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.ports.gate import Tell
from holdfast.runtime.gated import GatedDrain, GatedServer

__all__ = ["GatedParts", "ServerName", "gated_parts"]

ServerName: TypeAlias = Literal["hypercorn", "granian"]
_NEEDS: Final[dict[ServerName, tuple[str, ...]]] = {
    "hypercorn": ("hypercorn",),
    "granian": ("granian",),
}


@dataclass(frozen=True, slots=True)
class GatedParts:
    """What a host starts and stops; `server` needs `application`.

    Attributes:
        application: its start-up and shutdown.
        server: accepts, announces, drains, stops. Its `failure` says why it could not listen.
        gate: what all requests pass.
    """

    application: Lifespan
    server: GatedServer
    gate: Gate

    def announce(self) -> None:
        """From now on responses say that their connection ends."""
        self.gate.announce(_nobody_waits)

    def latest(self) -> Instant:
        """When somebody came last."""
        return self.gate.look().latest


def _nobody_waits() -> None:
    """No drain is under way."""


def gated_parts(
    name: ServerName,
    plan: Plan,
    app: App,
    sockets: Sequence[socket.socket],
    terms: Callable[[], DrainTerms],
    tell: Tell,
    *,
    stop: StopSettings,
    cut: Callable[[], object],
    around: Callable[[App], App],
    shared: bool = False,
) -> GatedParts:
    """Put the application and a server together. To be called on the loop that they are to live on.

    Args:
        name: of the server.
        plan: HTTP/2, certificates, access log.
        app: the application under its policy.
        sockets: bound; closed when the server accepts no more.
        terms: gives the times of the drain when it begins.
        tell: is told of each step of the drain.
        stop: what WebSockets and late requests are told.
        cut: ends what is served at the deadline.
        around: what stands outside of the gate, and is not counted there: the pages of health.
        shared: whether other processes accept from the sockets as well, so that their accept queues
            are left to them.

    Raises:
        ServeError: the server is not installed, or a certificate cannot be read.
    """
    for module in _NEEDS[name]:
        if find_spec(module) is None:
            raise ServeError(f"{name} is not installed; run: pip install 'holdfast[{name}]'")
    application = Lifespan(app)
    gate = Gate(application, returning=stop.returning, retry_after=stop.retry_after)
    drain = GatedDrain(gate, terms, tell, cut=cut, listeners=() if shared else sockets)
    entry = around(gate)
    try:
        if name == "hypercorn":
            server = _hypercorn(plan, entry, sockets, drain)
        else:
            server = _granian(plan, entry, sockets, drain)
    except OSError as error:  # of files, and of what is in them
        raise ServeError(
            f"--ssl-certfile {plan.certificate}: {error.strerror or error}; give a certificate and "
            "its key, both PEM"
        ) from None
    return GatedParts(application, server, gate)


def _hypercorn(
    plan: Plan, app: App, sockets: Sequence[socket.socket], drain: GatedDrain
) -> GatedServer:
    from holdfast.adapters.hypercorn import HypercornServer

    return HypercornServer.of(
        app,
        sockets,
        drain,
        http2=plan.http2,
        access_log=plan.access_log,
        certificate=plan.certificate,
        key=plan.key,
    )


def _granian(
    plan: Plan, app: App, sockets: Sequence[socket.socket], drain: GatedDrain
) -> GatedServer:
    from holdfast.adapters.granian import GranianServer

    options: dict[str, Any] = {"log_access": plan.access_log}
    return GranianServer(
        app,
        sockets,
        drain,
        http2=plan.http2,
        certificate=plan.certificate,
        key=plan.key,
        **options,
    )
