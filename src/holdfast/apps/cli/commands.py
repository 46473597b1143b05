"""The commands with their options. What they do is in the app of each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from holdfast._version import __version__
from holdfast.apps.cli.doctoring import doctor
from holdfast.apps.cli.serving import serve

__all__ = ["app"]

app = typer.Typer(
    name="holdfast",
    help="Bounded work for Python services: one deadline from the edge to the last socket.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Form(StrEnum):
    """How a timeline is shown."""

    TEXT = "text"
    JSON = "json"
    MERMAID = "mermaid"
    HTML = "html"


def _version(asked: bool) -> None:
    if asked:
        print(f"holdfast {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Bounded work for Python services: one deadline from the edge to the last socket."""


app.command()(serve)
app.add_typer(doctor)


@app.command()
def tree(
    pid: Annotated[
        int | None, typer.Option(min=1, help="Of this process (a supervisor shows its workers).")
    ] = None,
    url: Annotated[
        str, typer.Option(help="Of the service at this URL; it must show it, see \\[debug].")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again each second.")] = False,
) -> None:
    """Show the open scopes of running services: what works, for how long, and how long it may."""
    from holdfast.apps.tree.show import show

    if pid is not None and url:
        raise typer.BadParameter("--pid and --url do not go together; leave one away")
    raise typer.Exit(show(pid=pid, url=url, as_json=as_json, watch=watch))


@app.command()
def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:HOST",
            help="A host, a function that makes one, or a coroutine function: shop.worker:host",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings; holdfast.toml here, if there is one."),
    ] = None,
    service: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the service, over the one in the file.")
    ] = "",
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append what happens, for `holdfast timeline FILE`."),
    ] = None,
) -> None:
    """Run a program that is not an HTTP server: start it in order, stop it so that nothing is lost.

    SIGTERM and SIGINT stop it, a second one forces; SIGQUIT writes all stacks and exits; SIGHUP
    reloads; SIGUSR1 writes all stacks.
    """
    from holdfast.apps.run.run import Program
    from holdfast.apps.run.run import run as run_program

    raise typer.Exit(run_program(Program(target, service, config, timeline)))


@app.command()
def timeline(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="The records, as JSON lines; - for standard input."),
    ],
    form: Annotated[
        Form, typer.Option("--format", help="html is one page that needs nothing beside it.")
    ] = Form.TEXT,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Write to this file.")
    ] = None,
    run: Annotated[
        int, typer.Option(min=0, help="Which of several runs in the file, from 1; 0 for the last.")
    ] = 0,
) -> None:
    """Show a whole stop as a picture: what happened when, what was cut, and how it went."""
    from holdfast.apps.timeline.show import show

    raise typer.Exit(show(file, form=form, out=out, run=run))


@app.command()
def prestop(
    pid: Annotated[
        int | None,
        typer.Option(min=1, help="Of this process; else the only service here, or process 1."),
    ] = None,
    wait: Annotated[
        str, typer.Option(metavar="DURATION", help="Wait so long at most, such as 5s.")
    ] = "5s",
) -> None:
    """Tell a service that it will be stopped: it becomes unready and serves on for a while.

    For the preStop hook of a container. Ends when no new connections come, or after --wait.
    """
    from math import isfinite

    from holdfast.apps.prestop.ask import prestop as tell
    from holdfast.domain.instant import parse_duration

    try:
        seconds = parse_duration(wait)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--wait") from None
    if not isfinite(seconds):
        raise typer.BadParameter("must have an end", param_hint="--wait")
    raise typer.Exit(tell(pid=pid, wait=seconds))


@app.command()
def stops(
    service: Annotated[str, typer.Option(metavar="NAME", help="Of this service.")] = "",
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="In this file: `memory` under \\[stop].")
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Have them forgotten.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the last stops that services remember, and what the next drain will get."""
    from holdfast.apps.stops.show import show

    if service and file is not None:
        raise typer.BadParameter("--service and --file do not go together; leave one away")
    raise typer.Exit(show(service=service, file=file, reset=reset, as_json=as_json))


@app.command()
def demo(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds of load, without the carriers and with them.")
    ] = 12.0,
    export: Annotated[
        Path | None, typer.Option(help="Write the report as a picture (SVG) to this file.")
    ] = None,
) -> None:
    """Show on this machine what a deadline does to four services, one behind the other."""
    from importlib import import_module
    from importlib.util import find_spec

    # By name: the demo is an app of its own, and not part of every installation.
    if find_spec("holdfast.apps.demo") is None:
        print("holdfast: the demo is not part of this installation")
        raise typer.Exit(2)
    raise typer.Exit(import_module("holdfast.apps.demo").run(as_json, seconds, export))
