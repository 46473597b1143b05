"""Names by the messages of a real name server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.adapters.dnspython import DnsLookup
from holdfast.domain.discovery.names import CacheTerms
from holdfast.domain.faults import Fault, classify, is_retryable
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.hosts import Hosts
from holdfast.runtime.net.resolver import Addresses, Resolver
from tests.runtime.name_servers import Knot, knot
from tests.runtime.naming import LONG

pytestmark = pytest.mark.system
loops = pytest.mark.real_time("asyncio", "uvloop")

ZONE = """
second 1 A 192.0.2.1
both 20 A 192.0.2.2
both 30 AAAA 2001:db8::2
zero 0 A 192.0.2.3
zero 0 AAAA 2001:db8::3
alias 9 CNAME middle
middle 4 CNAME both
dangling 50 CNAME nowhere
four 50 A 192.0.2.4
text TXT "no address"
short 50 A 192.0.2.5
short.deep 50 A 192.0.2.6
a.b 50 A 192.0.2.7
""" + "\n".join(f"many 60 A 198.51.100.{n}" for n in range(1, 121))
NEGATIVE = 7
A, AAAA, TCP = "query-type[A]", "query-type[AAAA]", "request-protocol[tcp4]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Knot]:
    zones = {"example.test": ZONE, "broken.test": ""}
    with knot(tmp_path_factory.mktemp("knot"), zones, NEGATIVE) as running:
        yield running


def conf(path: Path, text: str) -> Path:
    file = path / "resolv.conf"
    file.write_text(text)
    return file


class Timed(Resolver):
    """Brings a clock that the test turns."""

    def __init__(self, server: str, path: Path, text: str = "", **terms: float) -> None:
        self.now = 1_000.0
        lookup = DnsLookup([server], conf=conf(path, text))
        kept = CacheTerms(**{"aging": 0.0, **terms})  # type: ignore[arg-type]
        hosts = Hosts(path / "hosts")
        super().__init__(lookup, terms=kept, hosts=hosts, clock=lambda: self.now)

    def get(self, name: str, family: int = socket.AF_INET) -> Addresses:
        return self.resolve_blocking(name, 80, family=family, limit=monotonic() + LONG)

    def hosts(self, name: str, family: int = socket.AF_INET) -> list[str]:
        return [address.sockaddr[0] for address in self.get(name, family)]

    def lives(self, name: str, server: Knot, kind: str = A) -> float:
        """Seconds that what is known of a name answers for itself, to one."""
        family = socket.AF_INET if kind == A else socket.AF_INET6
        asked, begun = server.queries(kind), self.now
        while True:
            with contextlib.suppress(socket.gaierror):
                self.get(name, family)
            if server.queries(kind) > asked + 1:
                return self.now - begun
            self.now += 1


@pytest.mark.parametrize(
    ("name", "kind", "seconds"),
    [
        ("second.example.test", A, 1),
        ("both.example.test", A, 20),
        ("both.example.test", AAAA, 30),
        ("alias.example.test", A, 4),  # the least of 9, 4 and 20
        ("nowhere.example.test", A, NEGATIVE),
        ("four.example.test", AAAA, NEGATIVE),  # there is one, but not of this type
        ("dangling.example.test", A, NEGATIVE),
        ("zero.example.test", A, 1),  # not kept: the first second asks again
    ],
)
def test_each_record_is_kept_for_as_long_as_it_says(
    server: Knot, tmp_path: Path, name: str, kind: str, seconds: int
) -> None:
    assert Timed(server.address, tmp_path).lives(name, server, kind) == seconds


def test_what_a_zone_says_of_what_is_not_there_is_capped(server: Knot, tmp_path: Path) -> None:
    resolver = Timed(server.address, tmp_path, negative_ceiling=3.0)
    assert resolver.lives("nowhere.example.test", server) == 3


@loops
async def test_a_hundred_at_once_are_one_question(server: Knot, tmp_path: Path) -> None:
    resolver = Resolver(DnsLookup([server.address], conf=conf(tmp_path, "")))
    v4 = socket.AF_INET
    for name in ("second", "zero"):
        before = server.queries(A)
        found = await asyncio.gather(
            *(resolver.resolve(f"{name}.example.test", 80, family=v4) for _ in range(100))
        )
        assert len(found) == 100
        assert len(set(found)) == 1
        # What may be used once is asked for again by who comes after the answer: on a machine that
        # is busy enough that is one of the hundred.
        assert 1 <= server.queries(A) - before <= (1 if name == "second" else 10)
    before = server.queries(A)
    await resolver.resolve("zero.example.test", 80, family=v4)
    assert server.queries(A) == before + 1


def test_both_families_come_with_ports(
    server: Knot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.runtime.net.resolver._OTHER_FAMILY", LONG)
    found = Timed(server.address, tmp_path).get("Both.Example.Test", socket.AF_UNSPEC)
    assert found == (
        (socket.AF_INET, ("192.0.2.2", 80)),
        (socket.AF_INET6, ("2001:db8::2", 80, 0, 0)),
    )
    assert not found.stale


def test_an_answer_that_is_cut_is_read_over_tcp(server: Knot, tmp_path: Path) -> None:
    before = server.queries(TCP)
    found = Timed(server.address, tmp_path).hosts("many.example.test")
    assert sorted(found) == sorted(f"198.51.100.{n}" for n in range(1, 121))
    assert server.queries(TCP) == before + 1


def test_no_such_name_and_no_such_type_and_no_answer_are_three_things(
    server: Knot, tmp_path: Path
) -> None:
    resolver = Timed(server.address, tmp_path)
    with pytest.raises(socket.gaierror, match=r"'nowhere\.example\.test' does not exist") as none:
        resolver.get("nowhere.example.test")
    with pytest.raises(socket.gaierror, match=r"'text\.example\.test' has no address") as other:
        resolver.get("text.example.test")
    with pytest.raises(socket.gaierror, match=r"'a\.broken\.test' A .*cannot tell") as broken:
        resolver.get("a.broken.test")
    assert none.value.errno == other.value.errno == socket.EAI_NONAME
    assert broken.value.errno == socket.EAI_AGAIN
    for error, again in ((none.value, False), (other.value, False), (broken.value, True)):
        assert server.address in str(error)
        assert classify(error) is Fault.DNS
        assert is_retryable(error, idempotent=True) is again


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("search example.test", "short", "192.0.2.5"),
        ("search nowhere.test example.test", "short", "192.0.2.5"),
        ("search deep.example.test example.test", "short", "192.0.2.6"),
        ("search example.test", "a.b", "192.0.2.7"),  # as it is first, and then behind
        ("search example.test\noptions ndots:2", "a.b", "192.0.2.7"),
        ("search deep.example.test", "short.example.test", "192.0.2.5"),
        ("search example.test\nsearch deep.example.test", "short", "192.0.2.6"),
        ("domain example.test", "short", "192.0.2.5"),
        ("search broken.test example.test", "short", "192.0.2.5"),
    ],
)
def test_search_domains(server: Knot, tmp_path: Path, text: str, name: str, address: str) -> None:
    assert Timed(server.address, tmp_path, text).hosts(name) == [address]


def test_ndots_says_what_is_tried_first(server: Knot, tmp_path: Path) -> None:
    for ndots, questions in ((1, 2), (2, 1)):
        resolver = Timed(server.address, tmp_path, f"search example.test\noptions ndots:{ndots}")
        before = server.queries(A)
        resolver.get("a.b")
        assert server.queries(A) == before + questions


def test_a_dot_at_the_end_means_that_the_name_is_complete(server: Knot, tmp_path: Path) -> None:
    resolver = Timed(server.address, tmp_path, "search example.test")
    assert resolver.hosts("short") == ["192.0.2.5"]
    with pytest.raises(socket.gaierror):
        resolver.get("short.")
    assert resolver.hosts("short.example.test.") == ["192.0.2.5"]


def test_where_a_search_domain_could_not_be_asked_nothing_is_certain(
    server: Knot, tmp_path: Path
) -> None:
    with pytest.raises(socket.gaierror) as caught:
        Timed(server.address, tmp_path, "search broken.test example.test").get("nowhere")
    assert caught.value.errno == socket.EAI_AGAIN


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "a..b", ".", "", "a b\0", "x." * 150])
def test_what_cannot_be_a_name_does_not_exist(server: Knot, tmp_path: Path, name: str) -> None:
    with pytest.raises(socket.gaierror) as caught:
        Timed(server.address, tmp_path).get(name)
    assert caught.value.errno == socket.EAI_NONAME


def test_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    zones = {"example.test": "orders 5 A 192.0.2.1"}
    with knot(tmp_path, zones) as server:
        resolver = Timed(server.address, tmp_path, stale=60.0, recheck=30.0)
        assert resolver.hosts("orders.example.test") == ["192.0.2.1"]
        server.stop()
        resolver.now += 6
        found = resolver.get("orders.example.test")
        assert [str(address) for address in found] == ["192.0.2.1:80"]
        assert found.stale
        assert resolver.get("orders.example.test").stale
        stats = resolver.stats()
        assert (stats.asked, stats.failed, stats.stale) == (2, 1, 2)  # once in 30 s
        server.again()
        assert resolver.get("orders.example.test").stale
        resolver.now += 31
        assert not resolver.get("orders.example.test").stale
        server.stop()
        resolver.now += 66
        with pytest.raises(socket.gaierror) as caught:
            resolver.get("orders.example.test")
        assert caught.value.errno == socket.EAI_AGAIN


def test_servers_come_from_the_file_as_it_is_now(tmp_path: Path) -> None:
    file = conf(tmp_path, "nameserver 192.0.2.53\nnameserver fd00::53\n")
    lookup = DnsLookup(conf=file)
    assert lookup.asks == "192.0.2.53, fd00::53"
    file.write_text("nameserver 192.0.2.54\n")
    until = time.monotonic() + LONG
    while lookup.asks != "192.0.2.54":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert DnsLookup(conf=tmp_path / "none").asks == "127.0.0.1"


@pytest.mark.parametrize("text", ["ns.test", "10.0.0.256", "10.0.0.1:dns", "[::1", "", "::g"])
def test_a_server_is_an_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address of a name server"):
        DnsLookup([text])


def test_servers_are_named_as_they_are_written() -> None:
    written = ["10.0.0.2", "10.0.0.2:5353", "fd00::2", "[fd00::2]:5353", "[fd00::3]"]
    assert DnsLookup(written).asks == "10.0.0.2, 10.0.0.2:5353, fd00::2, [fd00::2]:5353, fd00::3"


def test_a_forked_child_asks_for_itself(server: Knot, tmp_path: Path) -> None:
    program = """
import os, socket, sys, threading
from holdfast.adapters.dnspython import DnsLookup
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.resolver import Resolver

def get():
    return resolver.resolve_blocking(
        "both.example.test.", 80, family=socket.AF_INET, limit=monotonic() + 30
    )

def sockets():
    links = (os.path.realpath(f"/proc/self/fd/{number}") for number in range(64))
    return {link for link in links if "socket:" in link}

before = sockets()
resolver = Resolver(DnsLookup([sys.argv[1]]))
found = get()
assert get() == found and resolver.stats().asked == 1
of_the_parent = sockets() - before
assert len(of_the_parent) == 2, of_the_parent  # by which its thread is woken
if os.fork():
    _, status = os.wait()
    assert status == 0, status
    resolver.clear()
    assert get() == found  # nothing of the parent's is broken
else:
    try:
        assert not of_the_parent & sockets()
        assert resolver.stats().asked == 0
        assert get() == found and resolver.stats().asked == 1
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)
"""
    command = [sys.executable, "-c", program, server.address]
    done = subprocess.run(command, check=False, timeout=LONG, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
