"""Dead peers of gRPC are seen in time, and pings go to those alone that allow them."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import holdfast
from bench.net import ground
from holdfast.adapters.grpc_client import Keepalive, open_channel, open_sync_channel
from holdfast.runtime.clock import monotonic
from holdfast.testing.proxy import FaultProxy

pytestmark = [pytest.mark.system, pytest.mark.real_time("asyncio")]

ROOT = Path(__file__).parents[2]
READY = grpc.ChannelConnectivity.READY
DEFAULT = Keepalive()
QUICK = Keepalive(1.0, 0.5)
SEEN = 0.5
"""Seconds on top of its time and time-out."""
ALONE = ("grpc.use_local_subchannel_pool", 1)
"""Channels with like options share a connection otherwise."""
METHOD = "/shop.Orders/Sleep"

SERVER = """
import asyncio, json, sys
import grpc, grpc.aio

async def sleep(request, context):
    await asyncio.sleep(float(request))
    return b"slept"

async def main():
    server = grpc.aio.server(options=[tuple(pair) for pair in json.loads(sys.argv[1])])
    methods = {"Sleep": grpc.unary_unary_rpc_method_handler(sleep)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""


class Process:
    """A server in a process of its own, which can be frozen."""

    def __init__(self, *options: tuple[str, int]) -> None:
        self._inner = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(options)], stdout=subprocess.PIPE
        )
        assert self._inner.stdout is not None
        self.port = int(self._inner.stdout.readline())

    def freeze(self) -> None:
        os.kill(self._inner.pid, signal.SIGSTOP)

    def close(self) -> None:
        self._inner.kill()
        self._inner.communicate()


@asynccontextmanager
async def process(*options: tuple[str, int]) -> AsyncGenerator[Process]:
    server = await asyncio.to_thread(Process, *options)
    try:
        yield server
    finally:
        server.close()


class Lag:
    """How late this loop was at most: a busy machine is none of what is measured."""

    def __init__(self) -> None:
        self.most = 0.0
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            began = monotonic()
            await asyncio.sleep(0.02)
            self.most = max(self.most, monotonic() - began - 0.02)

    def close(self) -> None:
        self._task.cancel()


async def in_a_call(channel: grpc.aio.Channel) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(METHOD)(b"60")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


async def in_none(channel: grpc.aio.Channel) -> str:
    await channel.wait_for_state_change(READY)
    return ""


async def in_a_thread(port: int, keepalive: Keepalive) -> str:
    def call() -> str:
        with open_sync_channel(f"127.0.0.1:{port}", keepalive=keepalive) as channel:
            method: Any = channel.unary_unary(METHOD)
            with pytest.raises(grpc.RpcError) as caught:
                method(b"60")
            return f"{caught.value.code()}"

    return await asyncio.to_thread(call)


Waits = dict[str, tuple[Keepalive, asyncio.Task[str]]]


async def channel_to(stack: AsyncExitStack, port: int, **how: Any) -> grpc.aio.Channel:
    made = open_channel(f"127.0.0.1:{port}", **how)
    await stack.enter_async_context(made)
    await made.unary_unary(METHOD)(b"0")
    return made


async def waiting(stack: AsyncExitStack, *ports: int) -> Waits:
    """Channels of both kinds of keepalive to each port, with a call in flight and without."""
    waits: Waits = {}
    for port in ports:
        for keepalive in (DEFAULT, QUICK):
            for case in (in_a_call, in_none):
                made = await channel_to(stack, port, keepalive=keepalive, options=[ALONE])
                task = asyncio.create_task(case(made))
                waits[f"{port} {keepalive} {case.__name__}"] = keepalive, task
    return waits


async def beyond(waits: Waits, lag: Lag) -> dict[str, float]:
    """Seconds by which each was later than it says, from now on; infinite if it saw nothing."""
    began = monotonic()
    took: dict[str, float] = {}
    for name, (_, task) in waits.items():
        task.add_done_callback(lambda _, name=name: took.setdefault(name, monotonic() - began))
    await asyncio.wait([task for _, task in waits.values()], timeout=30)
    for _, task in waits.values():
        if task.done():
            task.result()
    return {
        name: took.get(name, math.inf) - keepalive.bound - lag.most
        for name, (keepalive, _) in waits.items()
    }


HOLE = """
table inet hole {
    chain input {
        type filter hook input priority 0;
        tcp dport PORT drop
        tcp sport PORT drop
    }
}
"""


async def _dropping() -> None:
    """In a network of its own: told to by a line, drop all packets, and tell who saw it when."""
    lag = Lag()
    async with process(*DEFAULT.server_options()) as server, AsyncExitStack() as stack:
        waits = await waiting(stack, server.port)
        print("ready", flush=True)
        if await asyncio.to_thread(sys.stdin.readline):
            rules = HOLE.replace("PORT", str(server.port))
            nft = ["nft", "-f", "-"]
            await asyncio.to_thread(subprocess.run, nft, input=rules, text=True, check=True)
            print(json.dumps(await beyond(waits, lag)), flush=True)
        lag.close()


def dropping() -> None:
    """The main function of a process, see `black_hole`."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    asyncio.run(_dropping())


@asynccontextmanager
async def black_hole() -> AsyncGenerator[Callable[[], Awaitable[dict[str, float]]]]:
    """A network where packets can be dropped; nobody is on it where none can be made."""

    async def nobody() -> dict[str, float]:
        return {}

    if ground.why_no_namespace():
        yield nobody
        return
    run = f"from {__name__} import dropping; dropping()"
    there = await asyncio.create_subprocess_exec(
        *ground.unshared(), sys.executable, "-c", run, cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    assert there.stdin is not None
    assert there.stdout is not None
    written, read = there.stdin, there.stdout

    async def drop() -> dict[str, float]:
        written.write(b"drop\n")
        found: dict[str, float] = json.loads(await read.readline())
        assert len(found) == 4
        return found

    try:
        assert await read.readline() == b"ready\n"
        yield drop
    finally:
        written.close()
        await there.wait()


@pytest.mark.timeout(60)
async def test_a_dead_peer_is_seen_in_time() -> None:
    # Pings of 5 s and answers of 3 s, in all cases at the same time: 8 s, and no more than 8.5 s.
    options = DEFAULT.server_options()
    lag = Lag()
    deaf = [ALONE, *(p for p in DEFAULT.client_options() if "ping_timeout" not in p[0])]
    async with (
        AsyncExitStack() as stack,
        black_hole() as drop,
        process(*options) as frozen,
        process(*options) as behind,
    ):
        with FaultProxy("127.0.0.1", behind.port) as proxy:
            waits = await waiting(stack, frozen.port, proxy.port)
            waits["thread"] = (QUICK, asyncio.create_task(in_a_thread(frozen.port, QUICK)))
            unheard = asyncio.create_task(
                in_a_call(await channel_to(stack, proxy.port, options=deaf))
            )
            await asyncio.sleep(0.3)

            frozen.freeze()
            proxy.to_server.stall()
            proxy.to_client.stall()
            for found in await asyncio.gather(beyond(waits, lag), drop()):
                for name, late in found.items():
                    assert late <= SEEN, name
            # Without the time-out of the ping itself it takes a minute more.
            assert not unheard.done()
            unheard.cancel()
            lag.close()
            proxy.heal()
            await asyncio.wait([unheard])


async def _pinged(every: float) -> None:
    """Plain servers, and such as allow it, are pinged every so often, with calls and without."""
    pinging, polite = Keepalive(every), Keepalive(every, without_calls=False)
    enough = 3.5 * every + 1.0
    async with (
        process() as plain,
        process(*pinging.server_options()) as ours,
        AsyncExitStack() as s,
    ):

        async def ready(server: Process, keepalive: Keepalive | None) -> grpc.aio.Channel:
            made = open_channel(f"127.0.0.1:{server.port}", keepalive=keepalive, options=[ALONE])
            await s.enter_async_context(made)
            await made.unary_unary(METHOD)(b"0")
            return made

        turned_away = [await ready(plain, pinging)]
        kept = [await ready(plain, None), await ready(plain, polite), await ready(ours, pinging)]
        in_flight = await ready(ours, pinging)
        call = asyncio.create_task(_slept(in_flight, enough))
        failing = asyncio.create_task(in_a_call(await ready(plain, polite)))

        left = [asyncio.create_task(in_none(channel)) for channel in turned_away]
        stays = [asyncio.create_task(in_none(channel)) for channel in kept]
        _, pending = await asyncio.wait([*left, failing], timeout=10 * every + 10)
        assert not pending, "a plain server did not mind"
        assert "pings" in failing.result()
        assert await call == b"slept"
        assert not any(task.done() for task in stays)
        for task in stays:
            task.cancel()
        await asyncio.wait(stays)


async def _slept(channel: grpc.aio.Channel, seconds: float) -> bytes:
    answer: bytes = await channel.unary_unary(METHOD)(str(seconds).encode())
    return answer


async def test_plain_servers_turn_away_who_pings() -> None:
    # grpc pings once a second at most, so this is as quick as it gets.
    await _pinged(1.0)


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_plain_servers_turn_away_who_pings_every_five_seconds() -> None:
    await _pinged(5.0)


async def test_a_call_says_that_the_peer_was_dead_and_not_the_deadline() -> None:
    async with (
        process(*QUICK.server_options()) as server,
        open_channel(f"127.0.0.1:{server.port}", keepalive=QUICK) as channel,
    ):
        await channel.unary_unary(METHOD)(b"0")
        async with holdfast.timeout(30.0) as scope:
            call = channel.unary_unary(METHOD)(b"60")
            asyncio.get_running_loop().call_later(0.2, server.freeze)
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE") as caught:
                await call
            assert scope.remaining() > 15.0
        assert not isinstance(caught.value, holdfast.DeadlineExceeded)
        assert any("grpc.header failed" in note for note in caught.value.__notes__)
