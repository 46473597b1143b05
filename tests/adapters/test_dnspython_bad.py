"""Name servers that are dead, or that say what they should not."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.adapters.dnspython import DnsLookup
from holdfast.domain.discovery.names import Answer
from holdfast.domain.errors import DeadlineExceeded
from holdfast.domain.phases import Phase
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.dial import Dialer
from holdfast.runtime.net.resolver import Resolver
from tests.adapters.test_dnspython import Timed, conf
from tests.runtime.name_servers import message, name_server
from tests.runtime.naming import LONG

pytestmark = pytest.mark.system
loops = pytest.mark.real_time("asyncio", "uvloop")


@loops
async def test_a_dead_server_ends_with_the_budget_and_is_named(tmp_path: Path) -> None:
    search = "search a.test b.test c.test d.test e.test f.test"
    with name_server() as silent:
        lookup = DnsLookup([silent.address], conf=conf(tmp_path, search))
        dialer = Dialer(resolver=Resolver(lookup))
        begun = monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await dialer.connect("orders", 80, timeout=0.3)
        assert 0.3 <= monotonic() - begun < LONG / 10
        assert caught.value.phase is Phase.DNS
        assert silent.address in caught.value.trail.line()  # type: ignore[union-attr]
        # Of a server that is dead one name is enough.
        assert len({query for _, query in silent.queries}) <= 2
        lookup.close()


@loops
async def test_forty_dead_questions_hold_up_no_other() -> None:
    def only_good(query: bytes, number: int) -> bytes | None:
        return message(query, "192.0.2.9") if b"good" in query else None

    with name_server(only_good) as peer:
        resolver = Resolver(DnsLookup([peer.address]))
        dead = [asyncio.ensure_future(resolver.resolve(f"dead{n}.test.", 80)) for n in range(40)]
        await asyncio.sleep(0.05)
        begun = monotonic()
        found = await resolver.resolve("good.test.", 80, family=socket.AF_INET)
        assert monotonic() - begun < LONG / 6
        assert found == ((socket.AF_INET, ("192.0.2.9", 80)),)
        for task in dead:
            task.cancel()
        await asyncio.wait(dead)
        assert all(task.cancelled() for task in dead)
        await resolver.aclose()


def test_a_forged_answer_is_not_taken(tmp_path: Path) -> None:
    def forged(query: bytes, number: int) -> list[bytes]:
        good = message(query, "192.0.2.9")
        other = message(query.replace(b"orders", b"others"), "192.0.2.66")
        number = bytes([good[0] ^ 1]) + message(query, "192.0.2.66")[1:]
        return [b"", b"\0", os.urandom(40), number, other, query, good]

    with name_server(forged) as peer:
        assert Timed(peer.address, tmp_path).hosts("orders.test.") == ["192.0.2.9"]


@pytest.mark.parametrize("rcode", [1, 2, 4, 5])
def test_a_server_that_cannot_tell_is_not_the_last_word(tmp_path: Path, rcode: int) -> None:
    with (
        name_server(lambda query, _: message(query, rcode=rcode)) as broken,
        name_server(lambda query, _: message(query, "192.0.2.9")) as good,
    ):
        lookup = DnsLookup([broken.address, good.address], conf=conf(tmp_path, ""))
        resolver = Resolver(lookup)
        found = resolver.resolve_blocking(
            "orders.test", 80, family=socket.AF_INET, limit=monotonic() + LONG
        )
        assert found == ((socket.AF_INET, ("192.0.2.9", 80)),)
        assert len(broken.queries) == 1
        resolver.close()


def test_a_process_ends_while_a_dead_server_is_asked() -> None:
    program = """
import sys
from holdfast.adapters.dnspython import DnsLookup
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import Resolver

try:
    Resolver(DnsLookup([sys.argv[1]])).resolve_blocking("a.test.", 80, limit=monotonic() + 0.1)
except TimeoutError:
    sys.exit(7)
"""
    with name_server() as silent:
        command = [sys.executable, "-W", "error", "-c", program, silent.address]
        begun = time.monotonic()
        done = subprocess.run(command, check=False, timeout=LONG, capture_output=True)
        assert time.monotonic() - begun < 5  # the plan of the question takes seven seconds
    assert (done.returncode, done.stderr) == (7, b"")


def test_an_answer_without_soa_is_not_kept() -> None:
    # RFC 2308, section 5
    with name_server(lambda query, _: message(query, rcode=3)) as peer:
        said: list[Answer | OSError] = []
        lookup = DnsLookup([peer.address])
        lookup.start("a.test.", "A", said.append)
        until = time.monotonic() + LONG
        while not said and time.monotonic() < until:
            time.sleep(0.002)
        lookup.close()
    answer = said[0]
    assert isinstance(answer, Answer)
    assert not answer.exists
    assert answer.ttl == 0
