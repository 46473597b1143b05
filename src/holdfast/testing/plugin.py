"""A pytest plugin: `async def` tests in virtual time, and nothing left behind.

    pytest_plugins = ["holdfast.testing.plugin"]            # in the top conftest.py

    async def test_patience():                               # takes no time
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(3600):
                await asyncio.Event().wait()

    @pytest.mark.real_time                                   # on the default loop of asyncio
    @pytest.mark.real_time("virtual", "asyncio", "uvloop")   # on each of these, as three tests

A test fails when it leaves a task, an open scope, an armed timer or a pending cancellation behind,
or an error that nobody retrieved. A test that is marked for another asynchronous plugin (`anyio`,
`asyncio`) is left to that one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Any, Final

import pytest

from holdfast.testing.leaks import run_checked
from holdfast.testing.virtual import VirtualLoop

# So that a broken law is told with the values that broke it.
pytest.register_assert_rewrite("holdfast.testing.laws")

__all__ = ["holdfast_loop", "pytest_configure", "pytest_generate_tests", "pytest_pyfunc_call"]

_MARKER: Final = "real_time"
_OTHERS: Final = ("anyio", "asyncio", "trio")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers", f"{_MARKER}(*loops): run on real loops; any of virtual, asyncio, uvloop"
    )


@pytest.fixture
def holdfast_loop(request: pytest.FixtureRequest) -> str:
    """Name of the loop that the test runs on: `virtual`, `asyncio` or `uvloop`."""
    given: str | None = getattr(request, "param", None)
    if given is None:
        return "virtual" if request.node.get_closest_marker(_MARKER) is None else "asyncio"
    return given


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each loop that the marker names."""
    marker = metafunc.definition.get_closest_marker(_MARKER)
    if marker is None or not marker.args:
        return
    if "holdfast_loop" not in metafunc.fixturenames:
        metafunc.fixturenames.append("holdfast_loop")
    metafunc.parametrize("holdfast_loop", marker.args, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function; leave every other test alone."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(inspect.unwrap(test)):
        return None
    if any(pyfuncitem.get_closest_marker(name) for name in _OTHERS):
        return None
    wanted = inspect.signature(test).parameters
    arguments = {name: value for name, value in pyfuncitem.funcargs.items() if name in wanted}
    loop = _loop_of(pyfuncitem)

    def main() -> Coroutine[Any, Any, object]:
        coroutine: Coroutine[Any, Any, object] = test(**arguments)
        return coroutine

    run_checked(main, _factory(loop))
    return True


def _loop_of(pyfuncitem: pytest.Function) -> str:
    """Name of the loop that a test runs on.

    Where it does not ask for the fixture, pytest gives it none: what it is called after counts.
    """
    named = getattr(pyfuncitem, "callspec", None)
    asked: object = pyfuncitem.funcargs.get("holdfast_loop")
    chosen = asked or (None if named is None else named.params.get("holdfast_loop"))
    if chosen is None:
        real = pyfuncitem.get_closest_marker(_MARKER) is not None
        return "asyncio" if real else "virtual"
    return str(chosen)


def _factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    match name:
        case "virtual":
            return VirtualLoop
        case "asyncio":
            return None
        case "uvloop":
            made: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
            return made
        case _:
            raise ValueError(f"no loop is called {name!r}; use virtual, asyncio or uvloop")
