"""An application for workers of gunicorn; writes what it saw into the file `LIBRARY_NOTES`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from tests.adapters.embedding import Story


class App(Story):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        seen = len(self.lines)
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            self._note(seen)
            raise
        self._note(seen)

    def _note(self, seen: int) -> None:
        with open(os.environ["LIBRARY_NOTES"], "a") as file:
            file.writelines(f"{line}\n" for line in self.lines[seen:])


app = App()
