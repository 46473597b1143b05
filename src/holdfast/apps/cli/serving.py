"""`holdfast serve`, with its options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = ["serve"]


class Server(StrEnum):
    """What `--server` may be."""

    UVICORN = "uvicorn"
    HYPERCORN = "hypercorn"
    GRANIAN = "granian"


_Target: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODULE:ATTR", help="The ASGI application: shop.main:app")
]
_Host: TypeAlias = Annotated[str, typer.Option(help="Address to listen on.")]
_Port: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, help="0 for any free port.")]
_Uds: TypeAlias = Annotated[
    str, typer.Option(metavar="PATH", help="Listen on a Unix socket instead.")
]
_Workers: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        envvar="WEB_CONCURRENCY",
        help="Processes that serve; auto for one for each processor that this may use.",
    ),
]
_Server: TypeAlias = Annotated[
    Server,
    typer.Option(help="What serves; how the others differ is in the documentation."),
]
_Http2: TypeAlias = Annotated[
    bool, typer.Option("--http2", help="Speak HTTP/2 as well; needs holdfast\\[http2].")
]
_SslCertfile: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Certificate chain (PEM): serve TLS.")
]
_SslKeyfile: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Its private key, when it is in a file of its own."),
]
_Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The policy; holdfast.toml here, if there is one."),
]
_Service: TypeAlias = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the service, over the one in the policy.")
]
_Factory: TypeAlias = Annotated[
    bool, typer.Option("--factory", help="ATTR makes the application when it is called.")
]
_Reload: TypeAlias = Annotated[
    bool, typer.Option("--reload", help="Start again when a Python file changes.")
]
_AccessLog: TypeAlias = Annotated[bool, typer.Option(help="Log each request.")]
_Admin: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--admin/--no-admin", help="A local socket for `holdfast tree`, for this user only."
    ),
]
_Timeline: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write what happens to FILE, for `holdfast timeline`."),
]


def serve(
    target: _Target,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    uds: _Uds = "",
    workers: _Workers = "1",
    server: _Server = Server.UVICORN,
    http2: _Http2 = False,
    ssl_certfile: _SslCertfile = None,
    ssl_keyfile: _SslKeyfile = None,
    config: _Config = None,
    service: _Service = "",
    factory: _Factory = False,
    reload: _Reload = False,
    access_log: _AccessLog = True,
    admin: _Admin = True,
    timeline: _Timeline = None,
) -> None:
    """Host an ASGI application under a time-out policy; start and stop without losing a request.

    SIGTERM and SIGINT stop it in order, a second one at once. SIGHUP reads the policy again;
    requests under way keep their limits. With several workers it replaces them one by one. SIGUSR1
    writes the stacks of all tasks and threads, SIGQUIT does and exits.
    """
    from holdfast.apps.serve.plan import Plan
    from holdfast.apps.serve.run import serve as run

    count = _workers(workers)
    if reload and count > 1:
        raise typer.BadParameter("--reload and --workers do not go together; leave one away")
    if ssl_keyfile is not None and ssl_certfile is None:
        raise typer.BadParameter("--ssl-keyfile goes with --ssl-certfile; give both")
    plan = Plan(
        target=target,
        factory=factory,
        host=host,
        port=port,
        uds=uds,
        workers=count,
        reload=reload,
        access_log=access_log,
        admin=admin,
        server=server.value,
        http2=http2,
        certificate="" if ssl_certfile is None else str(ssl_certfile.absolute()),
        key="" if ssl_keyfile is None else str(ssl_keyfile.absolute()),
        timeline="" if timeline is None else str(timeline.absolute()),
        service=service,
        config=None if config is None else config.absolute(),
    )
    raise typer.Exit(run(plan))


def _workers(wish: str) -> int:
    if not wish:  # a variable that is set to nothing
        return 1
    if wish == "auto":
        from holdfast.domain.lifecycle.quota import workers_for
        from holdfast.runtime.cgroup import read_quota

        return workers_for(read_quota()).count
    if wish.isascii() and wish.isdigit() and int(wish) > 0:
        return int(wish)
    raise typer.BadParameter(f"--workers {wish}: write a number from 1 upwards, or auto")
