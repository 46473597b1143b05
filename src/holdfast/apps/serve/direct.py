"""uvicorn, the server of `holdfast serve`: each of its connections can be reached."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.adapters.asgi.types import App
from holdfast.adapters.uvicorn import Settings, UvicornApplication, UvicornServer
from holdfast.apps.serve.hosted import Hosted
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.problem import ServeError
from holdfast.domain.errors import UsageError
from holdfast.domain.instant import Instant
from holdfast.domain.lifecycle.drain import DrainTerms
from holdfast.ports.gate import Tell

__all__ = ["DirectParts", "direct_parts"]

_RESTART: Final = 1012
_GOING_AWAY: Final = 1001
_NOBODY: Final = "-"
"""A pass phrase for keys that need one: else OpenSSL asks at the terminal, and waits."""


@dataclass(frozen=True, slots=True)
class DirectParts:
    """What a host starts and stops; `server` needs `application`."""

    application: UvicornApplication
    server: UvicornServer

    def announce(self) -> None:
        """From now on responses say that their connection ends."""
        self.server.config.watch.announcing = True

    def latest(self) -> Instant:
        """When somebody came last."""
        return self.server.config.watch.accepted


def direct_parts(
    plan: Plan,
    hosted: Hosted,
    app: App,
    sockets: Sequence[socket.socket],
    terms: Callable[[], DrainTerms],
    tell: Tell,
    *,
    returning: bool,
    cut: Callable[[], None],
    shared: bool,
    last: Callable[[], bool],
) -> DirectParts:
    """Put the application and uvicorn together. To be called on the loop that they are to live on.

    Args:
        plan: HTTP/2, certificates, access log.
        hosted: the application under its policy.
        app: the same, with what stands outside of it.
        sockets: bound; closed when the server accepts no more.
        terms: gives the times of the drain when it begins.
        tell: is told of each step of the drain.
        returning: whether another process takes over; what WebSockets are told.
        cut: ends what is served at the deadline.
        shared: whether other processes accept from the sockets as well.
        last: says when it stops whether nobody else serves what waits in their queues.

    Raises:
        ServeError: a certificate cannot be read, or HTTP/2 not be spoken.
    """
    settings = _settings(plan, hosted, app)
    settings.watch.code = _RESTART if returning else _GOING_AWAY
    application = UvicornApplication(settings)
    server = UvicornServer(
        settings, application, sockets, terms, tell, cut=cut, shared=shared, last=last
    )
    return DirectParts(application, server)


def _settings(plan: Plan, hosted: Hosted, app: App) -> Settings:
    try:
        settings = Settings(
            app,
            hosted,
            http2=plan.http2,
            access_log=plan.access_log,
            ssl_certfile=plan.certificate or None,
            ssl_keyfile=plan.key or None,
            ssl_keyfile_password=_NOBODY,
        )
        settings.load()
    except UsageError as error:
        raise ServeError(f"--http2: {error}") from None
    except OSError as error:  # of files, and of what is in them
        raise ServeError(_what_is_wrong(plan, error)) from None
    return settings


def _what_is_wrong(plan: Plan, error: OSError) -> str:
    key = plan.key or plan.certificate
    with suppress(OSError):
        if b"ENCRYPTED" in Path(key).read_bytes():
            return (
                f"--ssl-certfile {plan.certificate}: the key in {key} needs a pass phrase, and a "
                f"service has nobody to ask; give one without, as openssl pkey -in {key} writes it"
            )
    files = f"--ssl-certfile {plan.certificate}"
    files += f" with --ssl-keyfile {plan.key}" if plan.key else ""
    reason = (error.strerror or str(error)).partition(" (_ssl.c")[0]
    return f"{files}: {reason}; give a certificate and its key, both PEM"
