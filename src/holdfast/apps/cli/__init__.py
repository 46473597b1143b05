"""The command line: it knows every app, and loads each one only when it is asked for."""

from __future__ import annotations

import sys
from typing import Final

from holdfast._version import __version__

__all__ = ["main"]

_WRONG: Final = 2
_INTERRUPTED: Final = 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code. 2 stands for what the caller can put right."""
    words = sys.argv[1:] if arguments is None else arguments
    if words in (["--version"], ["-V"]):
        print(f"holdfast {__version__}")
        return 0
    try:
        import typer  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        print(
            "holdfast: the command line needs typer; run: pip install 'holdfast[cli]'",
            file=sys.stderr,
        )
        return _WRONG
    return _run(words)


def _run(words: list[str]) -> int:
    from holdfast.apps.cli.commands import app
    from holdfast.domain.errors import HoldfastError

    try:
        app(words, prog_name="holdfast")
    except SystemExit as end:
        return _exit_code(end)
    except HoldfastError as error:
        print(f"{getattr(error, 'trace', '')}holdfast: {error}", file=sys.stderr)
        return _WRONG
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        _close_output()
    return 0


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _close_output() -> None:
    # Else Python flushes it once more at exit, and complains.
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
