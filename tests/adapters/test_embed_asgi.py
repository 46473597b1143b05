"""ASGI servers as components, with real connections: what a stop loses, and what it says."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from holdfast.adapters.asgi import Gate, HoldfastMiddleware
from holdfast.runtime.gated import GatedDrain
from tests.adapters.embedding import (
    LOOPS,
    TERMS,
    Load,
    Story,
    bound,
    exchange,
    once_up,
    request,
    run,
    sockets_closed_with,
    stopping,
)

pytestmark = pytest.mark.system
SERVERS = ["hypercorn", "granian"]


class Served:
    """A server that is up."""

    def __init__(self, kind: str, app: Any, **options: Any) -> None:
        self.sock = bound()
        self.port: int = self.sock.getsockname()[1]
        self.steps: list[str] = []
        self.gate = Gate(app)
        self.drain = GatedDrain(self.gate, lambda: TERMS, self.tell, listeners=[self.sock])
        self.server: Any
        if kind == "hypercorn":
            from holdfast.adapters.hypercorn import HypercornServer

            self.server = HypercornServer(self.gate, [self.sock], self.drain, **options)
        else:
            from holdfast.adapters.granian import GranianServer

            self.server = GranianServer(self.gate, [self.sock], self.drain, **options)

    def tell(self, kind: str, subject: str, detail: str = "", **data: object) -> None:
        self.steps.append(subject)

    async def __aenter__(self) -> Served:
        await self.server.start()
        await once_up(self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if "done" not in self.steps:
            self.drain.begin(0.0)
            self.drain.hurry()
            await self.server.stop(0.0)
        self.sock.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("path", ["/", "/late/0.2"])
@pytest.mark.parametrize("kind", SERVERS)
def test_nothing_is_lost_on_connections_that_are_kept(kind: str, path: str, loop: Any) -> None:
    async def main() -> None:
        async with Served(kind, HoldfastMiddleware(Story())) as served:
            load = Load(served.port, path)
            await load.warm()
            await stopping(served.server)
            await load.ended()
            assert (load.lost, load.fresh) == (0, 0)
            assert load.announced >= 20
            assert served.steps[0] == "announce"
            assert served.steps[-1] == "done"
            with pytest.raises(ConnectionRefusedError):
                await served.connect()

    run(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", SERVERS)
def test_websockets_get_1012_and_their_handlers_are_told(kind: str, loop: Any) -> None:
    async def main() -> None:
        story = Story()
        async with Served(kind, story) as served:
            _opened, codes = await sockets_closed_with(served.port, 20)
            await stopping(served.server)
            assert await asyncio.gather(*codes) == [1012] * 20
            assert story.lines == ["disconnect 1012"] * 20

    run(loop, main())


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("kind", SERVERS)
def test_a_handler_that_never_ends_is_cut_at_the_deadline(kind: str, carried: bool) -> None:
    async def main() -> None:
        story = Story()
        async with Served(kind, HoldfastMiddleware(story) if carried else story) as served:
            reader, writer = await served.connect()
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await stopping(served.server, 2.0)
            assert time.monotonic() - began < 6
            status, head, _ = await exchange(reader)
            assert status == 503
            assert "retry-after: 1" in head
            assert story.lines == ["cancelled"]
            writer.close()

    run(None, main())


@pytest.mark.parametrize("kind", SERVERS)
def test_who_cannot_wait_is_done_at_once(kind: str) -> None:
    async def main() -> None:
        story = Story()
        async with Served(kind, story) as served:
            _, writer = await served.connect()
            writer.write(request("/wait/1000"))
            await asyncio.sleep(0.1)
            asyncio.get_running_loop().call_later(0.1, served.server.hurry)
            began = time.monotonic()
            await stopping(served.server, 20.0)
            assert time.monotonic() - began < 6
            assert story.lines == ["cancelled"]
            writer.close()

    run(None, main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", SERVERS)
def test_what_is_half_sent_is_served_or_holds_nobody_up(kind: str, loop: Any) -> None:
    async def main() -> None:
        async with Served(kind, Story()) as served:
            silent = await served.connect()
            header, body = await served.connect(), await served.connect()
            header[1].write(b"GET / HTTP/1.1\r\nhost:")
            body[1].write(request("/body", "content-length: 4", method="POST") + b"ab")
            await asyncio.sleep(0.1)
            began = time.monotonic()
            stop = asyncio.create_task(stopping(served.server, 10.0))
            await asyncio.sleep(0.3)
            header[1].write(b" t\r\n\r\n")
            body[1].write(b"cd")
            for reader, _ in (header, body):
                status, head, _ = await exchange(reader)
                assert status == 200
                assert "connection: close" in head
            await stop
            assert time.monotonic() - began < 6
            for _, writer in (silent, header, body):
                writer.close()

    run(loop, main())


@pytest.mark.parametrize("kind", SERVERS)
def test_what_waits_in_the_accept_queue_is_served(kind: str) -> None:
    async def main() -> None:
        async with Served(kind, Story()) as served:
            answers: list[int] = []

            async def one() -> None:
                try:
                    reader, writer = await served.connect()
                except OSError:
                    return
                try:
                    writer.write(request("/"))
                    answers.append((await exchange(reader))[0])
                except (EOFError, OSError):
                    answers.append(0)
                finally:
                    writer.transport.abort()

            async def clients() -> None:
                while "done" not in served.steps:
                    await one()

            tasks = [asyncio.create_task(clients()) for _ in range(8)]
            await asyncio.sleep(0.2)
            await stopping(served.server)
            await asyncio.gather(*tasks)
            assert len(answers) > 50
            assert set(answers) == {200}

    run(None, main())


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_cannot_listen_says_so(kind: str) -> None:
    async def main() -> None:
        served = Served(kind, Story())
        served.sock.close()
        with pytest.raises(OSError, match="descriptor"):
            await served.server.start()

    run(None, main())
