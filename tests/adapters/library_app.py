"""An application in library mode, for servers that are started by their own command.

`LIBRARY_APP` says which: words out of `carried` (with the carrier inside), `around` (with it
outside), `bare` (without a lifespan of its own), `failing` (its start-up fails). What it sees of
its life goes line by line into the file that `LIBRARY_NOTES` names.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from holdfast import lifecycle
from holdfast.adapters.asgi import HoldfastMiddleware, LifecycleMiddleware
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.runtime.lifecycle import FileReader, Host, Journal
from tests.adapters.embedding import Story

WORDS = os.environ.get("LIBRARY_APP", "").split()
NOTES = os.environ["LIBRARY_NOTES"]


def note(line: str) -> None:
    with open(NOTES, "a") as file:
        file.write(f"{line}\n")


class App(Story):
    async def _lifespan(self, receive: Any, send: Any) -> None:
        assert "bare" not in WORDS
        await receive()
        note("startup")
        if "failing" in WORDS:
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        _registered()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        note("shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, path: str, receive: Any, send: Any) -> None:
        if path == "/host":
            _registered()
        elif path == "/hooked":
            lifecycle.at_end(lambda outcome, cause: note(f"at end {outcome}"))
        try:
            await super()._http(path, receive, send)
        except asyncio.CancelledError:
            note("cancelled")
            raise

    async def _socket(self, receive: Any, send: Any) -> None:
        await super()._socket(receive, send)
        note(self.lines[-1])


def _registered() -> None:
    host = lifecycle.current()
    host.on_stop(lambda: note("stop begun"))
    host.at_exit(lambda: note("at exit"))
    host.health.check("database", lambda: True)


def make() -> Host:
    host = Host("library", journal=Journal(FileReader(f"{NOTES}.jsonl")))
    host.add("pool", start=lambda: note("pool up"), stop=lambda: note("pool down"))
    return host


stop = StopSettings(grace=6.0, cleanup=1.0, calm=0.3, quiet=0.6, lame_duck=2.0, base=3.0)
app: Any = App()
if "carried" in WORDS:
    app = HoldfastMiddleware(app)
app = LifecycleMiddleware(app, stop=stop, host=make)
if "around" in WORDS:
    app = HoldfastMiddleware(app)

if __name__ == "__main__":  # hypercorn's command has worker processes; this is its one-process form
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    asyncio.run(serve(app, config))
