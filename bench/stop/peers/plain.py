"""Two servers that show that the harness sees a loss, and sees none where there is none.

    python -m bench.stop.peers.plain PORT careless|careful

Both finish what is under way at SIGTERM. The careless one closes connections that are idle at once,
and the others after their answer, without a word. The careful one says `Connection: close` with
every answer, and ends when its clients have left.
"""

from __future__ import annotations

import asyncio
import signal
import sys

__all__ = ["main"]

LONGEST = 20.0
CALM = 0.5
"""Seconds without a connection after which the careful one ends."""


class Plain:
    def __init__(self, careful: bool) -> None:
        self.careful = careful
        self.stopping = asyncio.Event()
        self.idle: set[asyncio.StreamWriter] = set()
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                self.idle.add(writer)
                head = await reader.readuntil(b"\r\n\r\n")
                self.idle.discard(writer)
                await asyncio.sleep(_seconds(head))
                announced = self.careful and self.stopping.is_set()
                close = b"connection: close\r\n" if announced else b""
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + close + b"\r\nhello")
                if self.stopping.is_set():
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.idle.discard(writer)
            self.open -= 1
            writer.close()

    async def run(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        server = await asyncio.start_server(self.serve, "127.0.0.1", port, backlog=1024)
        await self.stopping.wait()
        if self.careful:
            await self._calm()
            server.close()
        else:
            server.close()
            for writer in self.idle:
                writer.close()
        async with asyncio.timeout(LONGEST):
            while self.open:  # noqa: ASYNC110 - a count to look at is all it needs
                await asyncio.sleep(0.01)

    async def _calm(self) -> None:
        loop = asyncio.get_running_loop()
        end = since = loop.time()
        end += LONGEST
        while loop.time() < min(since + CALM, end):
            await asyncio.sleep(0.01)
            if self.open:
                since = loop.time()


def _seconds(head: bytes) -> float:
    path = head.split()[1].decode()
    return float(path.rpartition("/")[2]) / 1000 if path.startswith("/wait/") else 0.0


def main(port: str, how: str) -> None:
    async def run() -> None:
        await Plain(how == "careful").run(int(port))

    asyncio.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
