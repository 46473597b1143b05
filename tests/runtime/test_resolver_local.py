"""What the resolver answers without asking anybody, and what it forgets."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.hosts import Hosts
from holdfast.runtime.net.resolver import Address, Resolver
from tests.runtime.naming import (
    INET,
    INET6,
    LONG,
    Several,
    Told,
    failing,
    here,
    known,
    names,
    now,
    settled,
)

# -- what needs nobody -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", Address(INET, ("192.0.2.1", 80))),
        ("2001:DB8::1", Address(INET6, ("2001:db8::1", 80, 0, 0))),
        ("[2001:db8::1]", Address(INET6, ("2001:db8::1", 80, 0, 0))),
        ("fe80::1%7", Address(INET6, ("fe80::1", 80, 0, 7))),
        ("fe80::1%lo", Address(INET6, ("fe80::1", 80, 0, socket.if_nametoindex("lo")))),
    ],
)
async def test_addresses(host: str, address: Address) -> None:
    told = Told()
    assert await here(told).resolve(host, 80, limit=0) == (address,)
    assert told.asked == []


def test_addresses_are_written_as_people_do() -> None:
    found = Resolver(Told()).resolve_blocking("::1", 80) + Resolver(Told()).resolve_blocking(
        "127.0.0.1", 80
    )
    assert [str(address) for address in found] == ["[::1]:80", "127.0.0.1:80"]


@pytest.mark.parametrize("host", ["localhost", "Localhost.", "orders.localhost"])
async def test_localhost_is_here(host: str) -> None:
    resolver = here(Told())
    assert names(await resolver.resolve(host, 80)) == ["127.0.0.1", "::1"]
    assert names(await resolver.resolve(host, 80, family=INET6)) == ["::1"]


async def test_the_hosts_file_comes_first_and_is_read_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(
        "# a comment\n192.0.2.1 Orders.test orders # another\n"
        "2001:db8::1\torders.test.\n192.0.2.1 orders.test\nno-address orders.test\n\n192.0.2.9\n"
    )
    told = Told()
    resolver = Resolver(told, hosts=Hosts(file))
    assert names(await resolver.resolve("orders.TEST", 80)) == ["192.0.2.1", "2001:db8::1"]
    assert names(await resolver.resolve("orders", 80)) == ["192.0.2.1"]
    with pytest.raises(TimeoutError):  # it has no such address there, so others are asked
        await resolver.resolve("orders", 80, family=INET6, limit=now() + 1)
    assert told.asked == [("orders", "ADDRESS")]


@pytest.mark.real_time
async def test_a_changed_hosts_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("192.0.2.1 orders.test\n")
    resolver = Resolver(Told(), hosts=Hosts(file))
    assert names(await resolver.resolve("orders.test", 80)) == ["192.0.2.1"]
    file.write_text("192.0.2.200 orders.test\n")
    async with asyncio.timeout(LONG):
        while names(await resolver.resolve("orders.test", 80)) != ["192.0.2.200"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    file.unlink()
    async with asyncio.timeout(LONG):
        while not resolver.stats().asked:
            await asyncio.sleep(0.02)
            with pytest.raises(TimeoutError):
                await resolver.resolve("other.test", 80, limit=monotonic() + 0.001)


@pytest.mark.parametrize("host", ["", ".", "a\0b", "a" * 254])
async def test_what_is_no_name_of_a_host(host: str) -> None:
    told = Told()
    with pytest.raises(socket.gaierror, match="is not the name of a host") as caught:
        await here(told).resolve(host, 80)
    assert caught.value.errno == socket.EAI_NONAME
    assert told.asked == []


async def test_a_name_with_a_dot_at_its_end_is_another_one() -> None:
    told = Told()
    resolver = here(told)
    for name in ("orders", "orders."):
        async with Several() as several:
            several.resolve(resolver, name)
            await settled()
            told.say("192.0.2.1")
    assert told.asked == [("orders", "ADDRESS"), ("orders.", "ADDRESS")]
    resolver.clear("Orders")
    assert resolver.stats().size == 0


async def test_clear() -> None:
    told = Told("A")
    resolver = here(told)
    for _ in range(2):
        await known(resolver, told)
        resolver.clear()
    await known(resolver, told)
    resolver.clear("other.test")
    assert resolver.stats().size == 1
    assert len(told.asked) == 3
    await resolver.aclose()
    assert told.closed == 1


async def test_what_is_handed_out_again_is_bounded_too() -> None:
    resolver = here(Told(), most=4)
    for port in range(20):
        await resolver.resolve("127.0.0.1", port)
    assert len(resolver._ready) <= 4


async def test_a_question_that_cannot_be_asked_can_be_asked_later() -> None:
    class Full(Told):
        def start(self, name: str, kind: str, done: Any) -> None:
            if not self.asked:
                self.asked.append((name, kind))
                raise RuntimeError("can't start new thread")
            super().start(name, kind, done)

    told = Full("A")
    resolver = here(told)
    error = await failing(resolver)
    assert error.errno == socket.EAI_AGAIN
    assert "can't start new thread" in str(error)
    await known(resolver, told)
