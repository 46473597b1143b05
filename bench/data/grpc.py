"""Figure data.grpc: what the carriers of gRPC add to one call, on both sides.

One answer to one request over loopback, with a server in a process of its own. The plain call has a
time-out, as it should have anywhere. Both sides, each side alone, and no deadline, so that one sees
who costs what.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import holdfast
from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "One call of gRPC, kept alive, over loopback"
ON_LOOP: Final = "grpc.aio"
THREADS: Final = "grpc, threads"
VARIANTS: Final = [] if absent("grpc") else [{"api": ON_LOOP}, {"api": THREADS}]
PLAIN: Final = "plain, with a time-out"
OURS: Final = "carriers on both sides, under a deadline"
CLIENT: Final = "carrier of the client alone"
SERVER_ALONE: Final = "carrier of the server alone"
UNBOUND: Final = "carriers on both sides, no deadline"
GOAL: Final = 1.10
BATCH: Final = 8
LIMIT: Final = 30.0
METHOD: Final = "/bench.Shop/Get"

SERVER: Final = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
import grpc, grpc.aio
from holdfast.adapters.grpc_server import GrpcCarrier, GrpcThreadCarrier

async def get(request, context):
    return request

def get_in_thread(request, context):
    return request

def add(server, method):
    made = grpc.unary_unary_rpc_method_handler(method)
    methods = grpc.method_handlers_generic_handler("bench.Shop", {"Get": made})
    server.add_generic_rpc_handlers((methods,))
    return server.add_insecure_port("127.0.0.1:0")

async def on_loop(ours):
    server = grpc.aio.server(interceptors=[GrpcCarrier()] if ours else [])
    port = add(server, get)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

def in_threads(ours):
    inside = [GrpcThreadCarrier()] if ours else []
    server = grpc.server(ThreadPoolExecutor(4), interceptors=inside)
    port = add(server, get_in_thread)
    server.start()
    print(port, flush=True)
    server.wait_for_termination()

ours = sys.argv[2] == "ours"
asyncio.run(on_loop(ours)) if sys.argv[1] == "grpc.aio" else in_threads(ours)
"""


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    api = variant["api"]
    table = Table(f"{TITLE}: {api}", "us", ["call"])
    with ExitStack() as stack:
        plain = stack.enter_context(served(api, "plain"))
        ours = stack.enter_context(served(api, "ours"))
        runner = stack.enter_context(asyncio.Runner(loop_factory=lambda: new_loop("asyncio")))
        cases = _on_loop if api == ON_LOOP else _in_threads
        cells = runner.run(cases(plain, ours, rounds(quick, 120), tell))
    compare(table, "call", {name: cell.per(BATCH) for name, cell in cells.items()})
    table.goal(OURS, "call", GOAL)
    return [table]


@contextmanager
def served(api: str, whose: str) -> Iterator[str]:
    """The target of a server that answers at once."""
    command = [sys.executable, "-c", SERVER, api, whose]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield f"127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


async def _on_loop(plain: str, ours: str, count: int, tell: Tell) -> Any:
    import grpc.aio

    from holdfast.adapters.grpc_client import open_channel

    async with (
        grpc.aio.insecure_channel(plain) as to_plain,
        grpc.aio.insecure_channel(ours) as to_ours,
        open_channel(ours) as both,
        open_channel(plain) as client,
    ):

        def timed(channel: Any) -> Callable[[int], Awaitable[object]]:
            call = channel.unary_unary(METHOD)

            async def run(batches: int) -> None:
                for _ in range(batches * BATCH):
                    await call(b"x", timeout=LIMIT)

            return run

        def bound(channel: Any) -> Callable[[int], Awaitable[object]]:
            call = channel.unary_unary(METHOD)

            async def run(batches: int) -> None:
                for _ in range(batches):
                    async with holdfast.timeout(LIMIT):
                        for _ in range(BATCH):
                            await call(b"x")

            return run

        def unbound(channel: Any) -> Callable[[int], Awaitable[object]]:
            call = channel.unary_unary(METHOD)

            async def run(batches: int) -> None:
                for _ in range(batches * BATCH):
                    await call(b"x")

            return run

        cases = [
            Case(PLAIN, timed(to_plain)),
            Case(OURS, bound(both)),
            Case(CLIENT, bound(client)),
            Case(SERVER_ALONE, timed(to_ours)),
            Case(UNBOUND, unbound(both)),
        ]
        return await duel(cases, count, tell, ON_LOOP)


async def _in_threads(plain: str, ours: str, count: int, tell: Tell) -> Any:
    import grpc

    from holdfast.adapters.grpc_client import open_sync_channel

    with (
        grpc.insecure_channel(plain) as to_plain,
        grpc.insecure_channel(ours) as to_ours,
        open_sync_channel(ours) as both,
        open_sync_channel(plain) as client,
    ):

        def timed(channel: Any) -> Callable[[int], Awaitable[object]]:
            call = channel.unary_unary(METHOD)

            def work(batches: int) -> None:
                for _ in range(batches * BATCH):
                    call(b"x", timeout=LIMIT)

            return _elsewhere(work)

        def bound(channel: Any) -> Callable[[int], Awaitable[object]]:
            call = channel.unary_unary(METHOD)

            def work(batches: int) -> None:
                for _ in range(batches):
                    with holdfast.timeout(LIMIT):
                        for _ in range(BATCH):
                            call(b"x")

            return _elsewhere(work)

        def unbound(channel: Any) -> Callable[[int], Awaitable[object]]:
            call = channel.unary_unary(METHOD)

            def work(batches: int) -> None:
                for _ in range(batches * BATCH):
                    call(b"x")

            return _elsewhere(work)

        cases = [
            Case(PLAIN, timed(to_plain)),
            Case(OURS, bound(both)),
            Case(CLIENT, bound(client)),
            Case(SERVER_ALONE, timed(to_ours)),
            Case(UNBOUND, unbound(both)),
        ]
        return await duel(cases, count, tell, THREADS)


def _elsewhere(work: Callable[[int], None]) -> Callable[[int], Awaitable[object]]:
    async def run(batches: int) -> None:
        await asyncio.get_running_loop().run_in_executor(None, work, batches)

    return run
