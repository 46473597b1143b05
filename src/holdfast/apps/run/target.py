"""From `MODULE:ATTR` to a host, or to one sentence about why not."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from holdfast.apps.run.problem import RunError
from holdfast.runtime.lifecycle import Host
from holdfast.runtime.target import TargetError, a_or_an, called, find_target

__all__ = ["load_host"]

_USUAL: Final = ("host", "main", "run", "worker", "make_host")
_ASGI: Final = 3
_log: Final = logging.getLogger("holdfast.lifecycle")


def load_host(target: str, service: str) -> Host:
    """The host that `target` names, that its factory makes, or whose work its coroutine is.

    Args:
        target: `MODULE:ATTR`.
        service: name of a host that is made here; without one that of the function.

    Raises:
        RunError: there is none, it is none of these, or the user's code failed.
    """
    try:
        found = find_target(target, what="host", usual=_USUAL)
        if inspect.iscoroutinefunction(found):
            return _host_of(found, target, service)
        if inspect.isroutine(found):
            _takes(found, 0, target, "the factory ")
            found = called(found, target)
            target = f"what {target} made"
    except TargetError as error:
        raise RunError(str(error), error.trace) from None
    if not isinstance(found, Host):
        raise RunError(_no_host(found, target))
    return found


def _host_of(work: Callable[..., Coroutine[Any, Any, object]], target: str, service: str) -> Host:
    takes = _takes(work, 1, target, "")
    name = getattr(work, "__name__", "work")
    host = Host(service or name)

    async def run() -> None:
        try:
            await work(*(host,) * takes)
        except Exception:
            _log.exception("%s failed", target)
            raise
        # Work that is done is no death: it is how such a program ends.
        host.stop("its work is done", by=name)
        await asyncio.get_running_loop().create_future()

    host.add(name, run=run)
    return host


def _takes(function: Callable[..., object], most: int, target: str, word: str) -> int:
    """How many arguments it must be called with."""
    empty = inspect.Parameter.empty
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    count = sum(
        parameter.default is empty and parameter.kind not in skipped
        for parameter in inspect.signature(function).parameters.values()
    )
    if count == _ASGI:
        raise RunError(
            f"{word}{target} takes three arguments, as an ASGI application does; "
            f"run: holdfast serve {target}"
        )
    if count > most:
        allowed = "the host, and nothing else" if most else "none"
        arguments = "argument" if count == 1 else "arguments"
        raise RunError(f"{word}{target} takes {count} {arguments}; let it take {allowed}")
    return count


def _no_host(found: object, target: str) -> str:
    if inspect.isclass(found):
        return f"{target} is a class; name an instance, or a function that makes one"
    if inspect.iscoroutine(found):
        found.close()
        return f"{target} is a coroutine; name the function, without calling it"
    text = f"{target} is {a_or_an(found)}, not a holdfast.lifecycle.Host"
    if callable(found):
        text += f"; if it is an ASGI application, run: holdfast serve {target}"
    return text
