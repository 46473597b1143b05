"""The parts of `holdfast run` that need no process of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.apps.run.problem import RunError
from holdfast.apps.run.settings import read_settings, terms_of
from holdfast.apps.run.target import load_host
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.runtime.lifecycle import ExitCode, Host, HostTerms
from holdfast.testing import run_virtual

MODULE = """
import asyncio
from holdfast.runtime.lifecycle import Host

host = Host("mailer")
text = "x"
seen = []

async def work():
    await asyncio.sleep(3)
    seen.append("done")

async def with_host(host):
    seen.append(host.name)

async def asgi(scope, receive, send): ...
async def two(a, b): ...
async def fails():
    raise LookupError("no such queue")

def make():
    return Host("made")

def make_text():
    return "x"

def needs(a):
    return a

def breaks():
    raise LookupError("no such setting")

class App:
    async def __call__(self, scope, receive, send): ...
app = App()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"worker_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_a_host_and_a_function_that_makes_one(here: str) -> None:
    assert load_host(f"{here}:host", "other") is sys.modules[here].host
    made = load_host(f"{here}:make", "")
    assert isinstance(made, Host)
    assert made.name == "made"


def test_work_that_is_done_ends_the_program(here: str) -> None:
    host = load_host(f"{here}:work", "shop")
    assert host.name == "shop"
    assert run_virtual(host.run()) is ExitCode.CLEAN
    assert sys.modules[here].seen == ["done"]
    assert host.cause == "work: its work is done"


def test_work_may_take_the_host(here: str) -> None:
    assert run_virtual(load_host(f"{here}:with_host", "").run()) is ExitCode.CLEAN
    assert sys.modules[here].seen == ["with_host"]


def test_work_that_fails_is_a_component_that_died(
    here: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = load_host(f"{here}:fails", "")
    assert run_virtual(host.run()) is ExitCode.COMPONENT_DIED
    assert "LookupError: no such queue" in caplog.text


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("text", "is a str, not a holdfast.lifecycle.Host"),
        ("make_text", "is a str, not a holdfast.lifecycle.Host"),
        ("Host", "is a class; name an instance"),
        ("asgi", "as an ASGI application does; run: holdfast serve"),
        ("app", "is an App, not a holdfast.lifecycle.Host; if it is an ASGI application, run: "),
        ("two", "takes 2 arguments; let it take the host, and nothing else"),
        ("needs", "takes 1 argument; let it take none"),
        ("breaks", "failed: LookupError: no such setting"),
        ("hots", "has no attribute 'hots'; did you mean 'host'"),
        ("", "does not name a host; write MODULE:ATTR, for example shop.main:host"),
    ],
)
def test_what_is_no_host_is_told_in_a_sentence(here: str, attribute: str, says: str) -> None:
    with pytest.raises(RunError) as caught:
        load_host(f"{here}:{attribute}", "")
    assert says in str(caught.value)


def test_a_coroutine_is_no_function(here: str) -> None:
    load_host(f"{here}:host", "")

    async def nothing() -> None:
        await asyncio.sleep(0)

    sys.modules[here].coroutine = nothing()  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="is a coroutine; name the function"):
        load_host(f"{here}:coroutine", "")


# -- settings --------------------------------------------------------------------------------------


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    assert read_settings(None, tmp_path) == (StopSettings(), "")


def test_the_file_and_the_platform_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holdfast.toml").write_text("service = 'mailer'\n[stop]\ncleanup = '2s'\n")
    stop, service = read_settings(None, tmp_path)
    assert (stop.grace, stop.cleanup, service) == (30.0, 2.0, "mailer")
    monkeypatch.setenv("HOLDFAST_GRACE", "60")
    assert read_settings(None, tmp_path)[0].grace == 60.0
    monkeypatch.setenv("HOLDFAST_GRACE", "soon")
    with pytest.raises(RunError, match="HOLDFAST_GRACE: 'soon' is not a duration"):
        read_settings(None, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[stop]\nclean = '1s'",
            "holdfast.toml:2: stop.clean: unknown key; did you mean 'cleanup'?",
        ),
        ("[stop", "holdfast.toml: "),
        ("\xff", "holdfast.toml: "),
    ],
)
def test_what_is_wrong_in_the_file_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "holdfast.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError) as caught:
        read_settings(None, tmp_path)
    assert says in str(caught.value)
    with pytest.raises(RunError, match="no such file"):
        read_settings(tmp_path / "none.toml", tmp_path)


def test_the_times_of_a_worker_have_no_lame_duck() -> None:
    host, told = terms_of(StopSettings(), 0)
    assert host == HostTerms(start=60.0, drain=25.0, cleanup=5.0)
    assert (told.drain, told.base, told.most, told.grace) == (25.0, 25.0, 25.0, 30.0)


def test_failures_make_the_drain_longer_inside_the_grace() -> None:
    settings = StopSettings(base=4.0)
    assert [terms_of(settings, n)[0].drain for n in range(4)] == [4.0, 6.0, 9.0, 13.5]
    assert terms_of(settings, 9)[0].drain == 25.0
    assert terms_of(StopSettings(start=float("inf")), 0)[0].start == 86_400.0
