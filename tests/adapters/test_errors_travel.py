"""Errors of the carriers go to another process, and come out as what they are."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3

from holdfast.adapters.aiohttp.errors import ERRORS
from holdfast.adapters.httpx.library import LIBRARIES
from holdfast.adapters.requests.classes import classes_for
from holdfast.domain.cause import Cause, CauseKind
from holdfast.domain.errors import DeadlineExceeded, InsufficientBudget, PhaseTimeout
from holdfast.domain.phases import Ended, Phase, Trail
from holdfast.runtime import outbound
from holdfast.runtime.outbound import ErrorClasses

CAUSE = Cause(CauseKind.DEADLINE, "checkout/GET orders", "shop", 1.0, 1.0, 1.0, "was late")
LIBRARY: dict[str, tuple[ErrorClasses, type[Exception]]] = {
    "aiohttp": (ERRORS, aiohttp.ServerTimeoutError),
    "httpx": (LIBRARIES["httpx"].errors, httpx.TimeoutException),
    "httpx2": (LIBRARIES["httpx2"].errors, httpx2.TimeoutException),
    "requests": (classes_for(requests.Session()).errors, requests.Timeout),
    "urllib3": (classes_for(urllib3.PoolManager()).errors, urllib3.exceptions.TimeoutError),
}


def record(phase: Phase = Phase.CONNECT) -> Trail:
    trail = Trail("orders.local:80", 0.0, 1.0)
    trail.begin(phase, 0.1)
    trail.tried("10.0.0.7:80", 0.1, 0.5, "timeout")
    trail.end(0.5, Ended.TIMEOUT)
    return trail


def made(library: str) -> Iterator[Any]:
    errors, _ = LIBRARY[library]
    for make in (errors.exceeded, errors.insufficient):
        error = make(CAUSE)
        error.trail = record()
        yield error
    for phase in (Phase.POOL, Phase.CONNECT, Phase.HEADER):
        yield errors.phase(record(phase))


def failing(library: str, place: int) -> None:
    """Runs in the other process."""
    error = list(made(library))[place]
    error.add_note("in the other process")
    raise error


def pickled(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize("twin", [pickled, copy.copy, copy.deepcopy])
def test_an_error_is_the_same_on_the_other_side(library: str, twin: Callable[[Any], Any]) -> None:
    for error in made(library):
        error.add_note("here")
        again = twin(error)
        assert type(again) is type(error)
        assert isinstance(again, TimeoutError)
        assert isinstance(again, LIBRARY[library][1])
        assert str(again) == str(error)
        assert again.__notes__ == ["here"]
        assert again.phase is error.phase
        assert again.trail.as_dict() == error.trail.as_dict()
        if not isinstance(again, PhaseTimeout):
            assert again.cause == CAUSE


def test_a_request_stays_behind_and_a_copy_keeps_it() -> None:
    request = requests.Request("POST", "http://orders.local/", data=iter([b"a"])).prepare()
    error: Any = LIBRARY["requests"][0].exceeded(CAUSE)
    assert error.request is None
    error.request = request
    assert copy.copy(error).request is request
    assert pickled(error).request is None
    late: Any = LIBRARY["httpx"][0].exceeded(CAUSE)
    late.request = httpx.Request("GET", "http://orders.local/")
    assert copy.copy(late).request is late.request
    with pytest.raises(RuntimeError):
        _ = pickled(late).request


def test_without_the_library_it_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    error = LIBRARY["aiohttp"][0].insufficient(CAUSE)
    data = pickle.dumps(error)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(outbound, "import_module", missing)
    again = pickle.loads(data)
    assert type(again) is InsufficientBudget
    assert again.cause == CAUSE


@pytest.mark.system
def test_a_pool_of_processes_hands_the_error_on() -> None:
    # Not forked: what is there knows nothing of the classes that were made here.
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        for library, (_, theirs) in LIBRARY.items():
            for place, kind in ((0, DeadlineExceeded), (1, InsufficientBudget), (3, PhaseTimeout)):
                with pytest.raises(TimeoutError) as caught:
                    pool.submit(failing, library, place).result(60)
                assert isinstance(caught.value, kind)
                assert isinstance(caught.value, theirs)
                assert caught.value.phase is Phase.CONNECT
                assert "in the other process" in caught.value.__notes__
