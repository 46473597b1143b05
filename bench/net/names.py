"""Looking a name up: from our cache, from those of others, and by asking each time.

In a network namespace of its own, with a real name server (knot) on loopback that resolv.conf
points at: the best case for whoever asks, as nothing is nearer. Where there is no such namespace
getaddrinfo reads the hosts file, which is nearer still, and there is no goal.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from bench._harness import Case, Table, Tell, absent, compare, duel, new_loop, rounds
from bench.net.ground import unshared, why_no_namespace

__all__ = ["TITLE", "VARIANTS", "measure"]

TITLE: Final = "Looking up a name"
VARIANTS: Final[list[dict[str, Any]]] = [{}]
GOAL: Final = 0.01
BATCH: Final = 20
NAME: Final = "orders.bench.test"
POINT: Final = "look-up"
CACHED: Final = ("Resolver.resolve, cached", "Resolver.resolve_blocking, cached")

_KNOTD: Final = shutil.which("knotd") or shutil.which("knotd", path="/usr/sbin")
_CONF: Final = """
server:
    rundir: "{path}"
    listen: 127.0.0.1@53
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{path}"
zone:
  - domain: bench.test
    storage: "{path}"
    file: zone
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
"""
_ZONE: Final = """$ORIGIN bench.test.
@ 300 SOA ns hostmaster 1 3600 600 86400 60
@ 300 NS ns
ns 300 A 127.0.0.1
orders 300 A 192.0.2.1
once 0 A 192.0.2.2
"""
_FILES: Final = {
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/resolv.conf": "nameserver 127.0.0.1\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
}


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> list[Table]:
    why = "knotd is not installed" if _KNOTD is None else why_no_namespace()
    if why:
        return [_measured("localhost", quick, tell, [f"names come from the hosts file: {why}"])]
    command = [*unshared(), sys.executable, "-m", "bench.net.names", "quick" if quick else "full"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            told = json.loads(line)
            if "table" in told:
                return [Table.from_dict(told["table"])]
            tell(told["done"], told["what"])
    raise RuntimeError(f"{' '.join(command)} ended with {worker.returncode}")


def _inside(quick: bool) -> None:
    """In the namespace: a name server, and the table as a line of JSON."""

    def tell(done: float, what: str) -> None:
        print(json.dumps({"done": done, "what": what}), flush=True)

    with _server():
        table = _measured(NAME, quick, tell, [])
    print(json.dumps({"table": table.as_dict()}), flush=True)


@contextmanager
def _server() -> Iterator[None]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="bench-names-") as name:
        path = Path(name)
        for target, text in _FILES.items():
            file = path / Path(target).name
            file.write_text(text)
            file.chmod(0o644)
            subprocess.run(["mount", "--bind", str(file), target], check=True)
        (path / "zone").write_text(_ZONE)
        (path / "conf").write_text(_CONF.format(path=path))
        with subprocess.Popen(
            [str(_KNOTD), "-c", str(path / "conf")], stdout=subprocess.DEVNULL, stderr=sys.stderr
        ) as server:
            try:
                _await_server()
                yield
            finally:
                server.kill()


def _await_server() -> None:
    for _ in range(200):
        try:
            socket.getaddrinfo(NAME, None, family=socket.AF_INET)
            return
        except socket.gaierror:
            subprocess.run(["sleep", "0.05"], check=True)
    raise RuntimeError("the name server did not start")


def _measured(name: str, quick: bool, tell: Tell, notes: list[str]) -> Table:
    table = Table(f"{TITLE}, {name}", "us", [POINT], ratio=False, notes=[*notes])
    missing = absent("aiodns", "dns")
    if missing:
        table.notes.append(f"not installed: {', '.join(missing)}")
    with asyncio.Runner(loop_factory=lambda: new_loop("asyncio")) as runner:
        cells = runner.run(_raced(name, quick, tell, missing))
    compare(table, POINT, {row: cell.per(BATCH) for row, cell in cells.items()})
    if not notes:
        for row in CACHED:
            table.goal(row, POINT, GOAL)
            times = 1 / table.checks[-1].measured.best
            table.notes.append(f"{row}: {times:.0f} times as many a second as socket.getaddrinfo")
    return table


async def _raced(name: str, quick: bool, tell: Tell, missing: list[str]) -> dict[str, Any]:
    async with _contestants(name, missing) as cases:
        return await duel(cases, rounds(quick, 40), tell)


@asynccontextmanager
async def _contestants(name: str, missing: list[str]) -> AsyncIterator[list[Case]]:
    from holdfast.runtime.net.resolver import Resolver

    loop = asyncio.get_running_loop()
    v4 = socket.AF_INET
    system = Resolver()

    async def plain(batches: int) -> None:
        for _ in range(batches * BATCH):
            socket.getaddrinfo(name, 80, family=v4)

    async def in_executor(batches: int) -> None:
        for _ in range(batches * BATCH):
            await loop.getaddrinfo(name, 80, family=v4)

    async def cached(batches: int) -> None:
        for _ in range(batches * BATCH):
            await system.resolve(name, 80, family=v4)

    async def cached_blocking(batches: int) -> None:
        for _ in range(batches * BATCH):
            system.resolve_blocking(name, 80, family=v4)

    cases = [
        Case("socket.getaddrinfo", plain),
        Case("loop.getaddrinfo", in_executor),
        Case(CACHED[0], cached),
        Case(CACHED[1], cached_blocking),
    ]
    if name == NAME:
        cases += _askers(missing)
    yield cases
    system.close()


def _askers(missing: list[str]) -> list[Case]:
    """Those who speak to name servers themselves."""
    v4 = socket.AF_INET
    cases: list[Case] = []
    if "dns" not in missing:
        import dns.asyncresolver
        import dns.resolver

        from holdfast.adapters.dnspython import DnsLookup
        from holdfast.runtime.net.resolver import Resolver

        asking = Resolver(DnsLookup())
        theirs = dns.asyncresolver.Resolver()
        theirs.cache = dns.resolver.LRUCache()

        async def uncached(batches: int) -> None:
            for _ in range(batches * BATCH):
                await asking.resolve("once.bench.test", 80, family=v4)

        async def dnspython(batches: int) -> None:
            for _ in range(batches * BATCH):
                await theirs.resolve(NAME, "A")

        cases += [
            Case("Resolver(DnsLookup()), asked each time", uncached),
            Case("dnspython with its LRUCache", dnspython),
        ]
    if "aiodns" not in missing:
        import aiodns

        channel = aiodns.DNSResolver()

        async def cares(batches: int) -> None:
            for _ in range(batches * BATCH):
                await channel.query_dns(NAME, "A")

        cases.append(Case("aiodns with its cache", cares))
    return cases


if __name__ == "__main__":
    _inside(sys.argv[1] == "quick")
