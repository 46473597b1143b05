"""An application that fails fails in one way, whoever runs its lifespan."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.adapters.asgi.lifespan import Lifespan
from holdfast.adapters.uvicorn import Settings, UvicornApplication
from holdfast.domain.errors import HoldfastError
from holdfast.ports.component import ApplicationFailed
from tests.adapters.draining import Terms


def failing(at: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for step in ("startup", "shutdown"):
            await receive()
            word = "failed" if step == at else "complete"
            await send({"type": f"lifespan.{step}.{word}"})
            if step == at:
                return

    return app


def by_asgi(app: Any) -> Any:
    return Lifespan(app)


def by_uvicorn(app: Any) -> Any:
    return UvicornApplication(Settings(app, Terms(), lifespan="on", log_config=None))


@pytest.mark.parametrize("made", [by_asgi, by_uvicorn])
async def test_a_start_or_a_stop_that_fails_raises_the_same_error(made: Any) -> None:
    cannot_start = made(failing("startup"))
    with pytest.raises(ApplicationFailed, match="start-up"):
        await cannot_start.start()
    cannot_stop = made(failing("shutdown"))
    await cannot_stop.start()
    with pytest.raises(ApplicationFailed, match="shutdown"):
        await cannot_stop.stop(10.0)
    assert issubclass(ApplicationFailed, HoldfastError)
