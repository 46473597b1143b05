"""`holdfast doctor` with its options."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["doctor"]

doctor = typer.Typer(
    name="doctor",
    help="Look at this host: what can be relied on, what is in the way, and what to do.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@doctor.callback()
def options() -> None:
    """Look at this host: what can be relied on, what is in the way, and what to do."""


@doctor.command()
def net(
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="Look this name up as well; repeatable."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600.0, help="Seconds for measuring timers.")
    ] = 7.0,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure which deadlines can be trusted here: timers, name servers, ports, files."""
    from holdfast.apps.doctor.show import show

    raise typer.Exit(show(seconds=seconds, names=names or (), as_json=as_json))
