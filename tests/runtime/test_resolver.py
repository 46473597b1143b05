"""The resolver between those who wait and the one who is asked, in virtual time."""

from __future__ import annotations

import asyncio
import socket

import pytest

import holdfast
from holdfast.domain.discovery.names import CacheTerms
from holdfast.runtime.net import resolver as module
from holdfast.runtime.net.resolver import Address
from tests.runtime.naming import (
    INET,
    INET6,
    Several,
    Told,
    failing,
    here,
    known,
    names,
    now,
    settled,
)

# -- one question for all who wait -----------------------------------------------------------------


async def test_all_who_wait_share_a_question_and_all_who_come_later_its_answer() -> None:
    told = Told()
    resolver = here(told)
    async with Several() as several:
        waiting = [several.resolve(resolver) for _ in range(100)]
        await settled()
        told.say("192.0.2.1")
    assert {task.result() for task in waiting} == {(Address(INET, ("192.0.2.1", 80)),)}
    assert names(await resolver.resolve("Orders.test", 81)) == ["192.0.2.1"]
    assert names(await resolver.resolve("orders.test", 80)) == ["192.0.2.1"]
    stats = resolver.stats()
    assert told.asked == [("orders.test", "ADDRESS")]
    assert (stats.asked, stats.misses, stats.shared, stats.hits) == (1, 100, 99, 2)
    assert (stats.size, stats.failed, stats.stale, stats.evicted) == (1, 0, 0, 0)


async def test_who_gives_up_takes_nothing_from_the_others() -> None:
    told = Told()
    resolver = here(told)
    async with Several() as several:
        gives_up, limited, stays = (several.resolve(resolver) for _ in range(3))
        with pytest.raises(holdfast.DeadlineExceeded):
            async with holdfast.timeout(0.25):
                await resolver.resolve("orders.test", 80)
        begun = now()
        gives_up.cancel()
        await asyncio.sleep(0)
        assert gives_up.cancelled()
        assert now() == begun
        told.say("192.0.2.1")
    assert names(stays.result()) == names(limited.result()) == ["192.0.2.1"]
    assert len(told.asked) == 1


async def test_an_answer_that_nobody_waits_for_is_kept() -> None:
    told = Told()
    resolver = here(told)
    with pytest.raises(TimeoutError):
        await resolver.resolve("orders.test", 80, limit=now() + 1)
    told.say("192.0.2.1")
    assert names(await resolver.resolve("orders.test", 80, limit=now())) == ["192.0.2.1"]


async def test_the_limit_is_kept_to_the_instant_and_names_who_was_asked() -> None:
    told = Told()
    resolver = here(told)
    begun = now()
    with pytest.raises(TimeoutError, match=r"'orders\.test' was not .* asked: 192\.0\.2\.53"):
        await resolver.resolve("orders.test", 80, limit=begun + 0.75)
    assert now() == pytest.approx(begun + 0.75, abs=1e-6)


async def test_without_time_nobody_is_asked() -> None:
    told = Told("A", "AAAA")
    resolver = here(told)
    with pytest.raises(TimeoutError):
        await resolver.resolve("orders.test", 80, limit=now())
    assert told.asked == []
    async with asyncio.TaskGroup() as group:
        group.create_task(failing(resolver, family=INET))
        await settled()
        told.say(exists=False)
    # What is known needs no time, also that there is nothing.
    assert (await failing(resolver, family=INET, limit=now())).errno == socket.EAI_NONAME


async def test_a_question_that_may_be_lost_is_asked_once_more_and_no_third_time() -> None:
    told = Told()
    resolver = here(told)
    async with Several() as several:
        waiting = [several.resolve(resolver)]
        for seconds in (1.75, 0.5, 3.0, 30.0):
            await asyncio.sleep(seconds)
            waiting.append(several.resolve(resolver))
        await settled()
        assert len(told.asked) == 2
        told.waiting.reverse()
        told.say("192.0.2.1")  # to the second one; the first is never answered
    assert {tuple(names(task.result())) for task in waiting} == {("192.0.2.1",)}
    told.say("192.0.2.66")
    assert names(await resolver.resolve("orders.test", 80)) == ["192.0.2.1"]


async def test_that_one_of_two_questions_fails_ends_only_that_one() -> None:
    told = Told()
    resolver = here(told)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(failing(resolver))
        await asyncio.sleep(3)
        second = group.create_task(resolver.resolve("orders.test", 80))
        await settled()
        told.fail()
        await settled()
        assert first.done()
        assert not second.done()
        told.say("192.0.2.1")
    assert names(second.result()) == ["192.0.2.1"]


async def test_everybody_who_waited_has_an_error_of_their_own() -> None:
    told = Told()
    resolver = here(told)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(failing(resolver)) for _ in range(2)]
        await settled()
        told.fail()
    first, second = (task.result() for task in waiting)
    assert first is not second
    assert (first.errno, str(first)) == (second.errno, str(second))
    assert first.errno == socket.EAI_AGAIN


# -- what is known ends, and serves on -------------------------------------------------------------


async def test_what_is_used_once_is_asked_for_each_time() -> None:
    told = Told("A")
    resolver = here(told)
    await known(resolver, told, ttl=0)
    await known(resolver, told, ttl=0)
    assert len(told.asked) == 2


async def test_before_its_end_an_answer_is_asked_for_again_by_whoever_uses_it() -> None:
    told = Told("A")
    resolver = here(told, aging=0.1)
    await known(resolver, told, ttl=60)
    await asyncio.sleep(53.5)
    await resolver.resolve("orders.test", 80)
    assert len(told.asked) == 1
    await asyncio.sleep(1)
    for _ in range(3):
        assert names(await resolver.resolve("orders.test", 80)) == ["192.0.2.1"]
    assert len(told.asked) == 2
    told.say("192.0.2.2")
    assert names(await resolver.resolve("orders.test", 80)) == ["192.0.2.2"]
    assert resolver.stats().stale == 0


async def test_what_is_stale_serves_after_a_while_of_silence() -> None:
    told = Told("A")
    resolver = here(told, stale=600)
    await known(resolver, told, ttl=60)
    await asyncio.sleep(61)
    begun = now()
    found = await resolver.resolve("orders.test", 80)
    assert (names(found), found.stale) == (["192.0.2.1"], True)
    assert now() - begun == pytest.approx(1.8, abs=1e-6)  # RFC 8767, section 5
    begun = now()
    assert (await resolver.resolve("orders.test", 80, limit=begun + 0.4)).stale
    assert now() - begun == pytest.approx(0.2, abs=1e-6)  # leaves time for what comes next
    begun = now()
    async with holdfast.timeout(0.4):
        assert (await resolver.resolve("orders.test", 80)).stale
    assert now() - begun == pytest.approx(0.2, abs=1e-6)
    told.say("192.0.2.2")
    found = await resolver.resolve("orders.test", 80)
    assert (names(found), found.stale) == (["192.0.2.2"], False)
    assert len(told.asked) == 3
    assert resolver.stats().stale == 3


async def test_without_time_to_ask_what_is_stale_serves_at_once() -> None:
    told = Told("A")
    resolver = here(told)
    await known(resolver, told, ttl=60)
    await asyncio.sleep(61)
    assert (await resolver.resolve("orders.test", 80, limit=now())).stale
    assert len(told.asked) == 1


async def test_after_a_failure_what_is_stale_serves_without_a_question_for_a_while() -> None:
    told = Told("A")
    resolver = here(told, recheck=30, stale=600)
    await known(resolver, told, ttl=60)
    await asyncio.sleep(61)
    async with Several() as several:
        task = several.resolve(resolver)
        await settled()
        told.fail()
    assert task.result().stale
    begun = now()
    for _ in range(3):
        assert (await resolver.resolve("orders.test", 80)).stale
    assert now() == begun
    assert len(told.asked) == 2
    await asyncio.sleep(31)
    await resolver.resolve("orders.test", 80)
    assert len(told.asked) == 3


async def test_stale_has_an_end() -> None:
    told = Told("A")
    resolver = here(told, stale=600)
    await known(resolver, told, ttl=60)
    await asyncio.sleep(661)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(failing(resolver))
        await settled()
        told.fail()
    assert task.result().errno == socket.EAI_AGAIN


async def test_an_answer_that_says_there_is_nothing_any_more_ends_what_was() -> None:
    told = Told("A")
    resolver = here(told)
    await known(resolver, told, ttl=60)
    await asyncio.sleep(61)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(failing(resolver))
        await settled()
        told.say(exists=True)
    assert task.result().errno == socket.EAI_NONAME
    assert "has no address" in str(task.result())
    assert (await failing(resolver)).errno == socket.EAI_NONAME
    assert resolver.stats().negative_hits == 1


# -- two families ----------------------------------------------------------------------------------


async def test_the_other_family_is_waited_for_a_moment() -> None:
    told = Told("A", "AAAA")
    resolver = here(told)
    async with Several() as several:
        both, one = several.resolve(resolver), several.resolve(resolver, "other.test")
        await settled()
        begun = now()
        told.say("2001:db8::1", kind="AAAA")
        told.say("2001:db8::2", kind="AAAA")
        await asyncio.sleep(0.03125)
        told.say("192.0.2.1", kind="A")
    assert names(both.result()) == ["192.0.2.1", "2001:db8::1"]  # the order is that of the types
    assert names(one.result()) == ["2001:db8::2"]
    assert now() - begun == pytest.approx(0.05, abs=1e-3)  # RFC 8305, section 3
    told.say("192.0.2.2", kind="A")
    assert names(await resolver.resolve("other.test", 80)) == ["192.0.2.2", "2001:db8::2"]


async def test_that_a_family_has_nothing_is_no_reason_to_hurry_the_other() -> None:
    told = Told("A", "AAAA")
    resolver = here(told)
    async with Several() as several:
        task = several.resolve(resolver)
        await settled()
        told.say(kind="AAAA")
        await asyncio.sleep(5)
        told.say("192.0.2.1", kind="A")
    assert names(task.result()) == ["192.0.2.1"]


async def test_a_family_that_nobody_answers_for_costs_no_second_wait() -> None:
    told = Told("A", "AAAA")
    resolver = here(told, recheck=30)
    async with Several() as several:
        several.resolve(resolver)
        await settled()
        told.say("192.0.2.1", kind="A")
        told.fail("AAAA")
    begun = now()
    for _ in range(3):
        assert names(await resolver.resolve("orders.test", 80)) == ["192.0.2.1"]
    assert now() == begun
    assert told.asked == [("orders.test", "A"), ("orders.test", "AAAA")]
    await asyncio.sleep(31)
    await resolver.resolve("orders.test", 80)
    assert len(told.asked) == 3


async def test_a_family_that_is_known_hurries_one_that_is_not() -> None:
    told = Told("A", "AAAA")
    resolver = here(told)
    await known(resolver, told)
    begun = now()
    assert names(await resolver.resolve("orders.test", 80)) == ["192.0.2.1"]
    assert now() - begun == pytest.approx(0.05, abs=1e-6)


async def test_no_answer_for_one_family_is_not_that_there_is_none() -> None:
    told = Told("A", "AAAA")
    resolver = here(told)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(failing(resolver))
        await settled()
        told.say(kind="A")
        told.fail("AAAA")
    assert task.result().errno == socket.EAI_AGAIN
    with pytest.raises(TimeoutError):
        await resolver.resolve("orders.test", 80, limit=now() + 1)


async def test_only_the_family_that_is_wanted_is_asked_for() -> None:
    told = Told("A", "AAAA")
    resolver = here(told)
    for family, kind, address in ((INET, "A", "192.0.2.1"), (INET6, "AAAA", "2001:db8::1")):
        async with Several() as several:
            task = several.resolve(resolver, family=family)
            await settled()
            told.say(address)
        assert names(task.result()) == [address]
        assert told.asked.pop() == ("orders.test", kind)
    told = Told("ADDRESS")
    resolver = here(told)
    async with Several() as several:
        task = several.resolve(resolver, family=INET6)
        await settled()
        told.say("192.0.2.1", "2001:db8::1")
    assert names(task.result()) == ["2001:db8::1"]


def test_the_numbers_are_those_of_the_documents() -> None:
    assert module._OTHER_FAMILY == 0.05  # RFC 8305, section 3
    assert module._STALE_AFTER == 1.8  # RFC 8767, section 5
    terms = CacheTerms()
    assert (terms.recheck, terms.stale) == (30.0, 86_400.0)  # RFC 8767, section 5
