"""What the host does about signals, and the record that each of them leaves."""

from __future__ import annotations

import asyncio
import os
import re
import signal

import pytest

import holdfast
from holdfast.domain.lifecycle.meaning import DEFAULT_MEANINGS, Meanings, meanings
from holdfast.runtime.lifecycle import ExitCode, Host
from holdfast.runtime.signals import Signals
from holdfast.runtime.signals.note import SignalNote
from tests.runtime.hosting import (
    TERMS,
    Thing,
    forever,
    host_of,
    later,
    lines,
    no_breach,
    now,
    phases,
    records,
)


class Fake:
    """Signals by hand."""

    def __init__(self, found: Meanings = DEFAULT_MEANINGS) -> None:
        self.meanings = found
        self.queue: asyncio.Queue[SignalNote | None] = asyncio.Queue()
        self.closed = False

    def subscribe(self) -> Fake:
        return self

    def __aiter__(self) -> Fake:
        return self

    async def __anext__(self) -> SignalNote:
        note = await self.queue.get()
        if note is None:
            raise StopAsyncIteration
        return note

    def close(self) -> None:
        self.closed = True
        self.queue.put_nowait(None)

    def send(self, name: str) -> None:
        number = getattr(signal, name)
        note = SignalNote(int(number), name, now(), 812, 1000, "SI_USER", "bash", "bash -i")
        self.queue.put_nowait(note)


def hanging() -> Host:
    return host_of(Thing("web", [], stop=forever))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_a_signal_that_means_stop_stops_and_says_who_sent_it(name: str) -> None:
    signals = Fake()
    host = host_of(Thing("web", []))
    later(5, signals.send, name)
    assert await host.run(signals) is ExitCode.CLEAN
    (record,) = records(host, "signal.received")
    assert (record.subject, record.detail) == (name, "from process 812 (bash) of user 1000")
    data = dict(record.data)
    assert (data["before"], data["after"], data["again"]) == ("running", "terminating", False)
    assert (data["pid"], data["uid"], data["code"], data["process"]) == (
        812, 1000, "SI_USER", "bash"
    )  # fmt: skip
    assert "stacks" not in data
    assert host.cause == f"{name}: from process 812 (bash) of user 1000"
    assert signals.closed
    # The order of the story: first the signal, then what came of it.
    kinds = [r.kind for r in host.journal.records]
    assert kinds.index("signal.received") < kinds.index("stop.begun")
    no_breach()


async def test_who_sent_it_is_for_the_journal_and_in_no_cause_that_leaves_the_process() -> None:
    signals, found = Fake(), list[str]()

    class Server(Thing):
        async def start(self) -> None:
            await super().start()
            self.task = asyncio.create_task(self.serve())

        async def serve(self) -> None:
            try:
                async with holdfast.timeout(3600, name="request"):
                    await forever()
            except holdfast.ScopeEnded as error:
                found.append(error.cause.line())

        async def stop(self, deadline: float) -> None:
            await super().stop(deadline)
            await asyncio.wait([self.task])

    thing = Server("web", [])
    host = host_of(thing)
    later(5, signals.send, "SIGTERM")
    later(7, signals.send, "SIGTERM")
    assert await host.run(signals) is ExitCode.FORCED
    causes = [thing.requests[0].cause.line(), *found]
    assert len(causes) == 2
    for text in causes:
        assert "SIGTERM" in text
        assert not {"812", "bash", "1000"} & set(re.findall(r"\w+", text))
    assert host.brief == "SIGTERM"
    (begun,) = records(host, "stop.begun")
    assert begun.cause == host.cause == "SIGTERM: from process 812 (bash) of user 1000"


@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
async def test_the_second_forces(second: str) -> None:
    signals = Fake()
    host = hanging()
    later(5, signals.send, "SIGTERM")
    later(7, signals.send, second)
    began = now()
    assert await host.run(signals) is ExitCode.FORCED
    assert now() - began < 8.2
    first, again = records(host, "signal.received")
    assert (first.data["again"], again.data["again"]) == (False, True)
    assert (again.data["before"], again.data["after"]) == ("draining", "draining")
    assert len(records(host, "drain.cut")) == 1


async def test_a_stop_by_the_program_and_one_signal_is_force() -> None:
    signals = Fake()
    host = hanging()
    later(5, host.stop)
    later(6, signals.send, "SIGTERM")
    assert await host.run(signals) is ExitCode.FORCED


async def test_a_signal_while_components_start() -> None:
    signals = Fake()
    story: list[str] = []
    host = host_of(Thing("a", story, start=1), Thing("b", story, start=10))
    later(5, signals.send, "SIGTERM")
    assert await host.run(signals) is ExitCode.CLEAN
    (record,) = records(host, "signal.received")
    assert (record.data["before"], record.data["after"]) == ("initializing", "terminating")
    assert story == ["start a", "start b", "start b cancelled", "prepare a", "stop a"]


async def test_quit_may_mean_stop() -> None:
    signals = Fake(meanings(quit="stop"))
    host = host_of(Thing("web", []))
    later(5, signals.send, "SIGQUIT")
    assert await host.run(signals) is ExitCode.CLEAN
    assert host.cause.startswith("SIGQUIT")


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGQUIT"])
async def test_what_means_nothing_here_is_recorded_and_no_more(name: str) -> None:
    signals = Fake()
    host = host_of(Thing("web", []))
    later(5, signals.send, name)
    later(6, host.stop)
    await host.run(signals)
    (record,) = records(host, "signal.received")
    assert record.data["meaning"] == ("ignore" if name == "SIGUSR2" else "dump_and_exit")
    assert (record.data["before"], record.data["after"]) == ("running", "running")
    assert phases(host)[1] == "running"


async def test_stacks_on_request() -> None:
    signals = Fake()
    host = host_of(Thing("web", []))
    host.audit.with_stacks = True
    later(5, signals.send, "SIGTERM")
    await host.run(signals)
    (record,) = records(host, "signal.received")
    assert "host shop" in str(record.data["stacks"])


async def test_a_dump_is_written_and_the_process_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    signals = Fake()
    host = host_of(Thing("web", []))
    for at in (5, 6, 7):
        later(at, signals.send, "SIGUSR1")
    later(6.5, lambda: setattr(host.audit, "write_dump", lambda text: 1 / 0))
    later(8, host.stop)
    assert await host.run(signals) is ExitCode.CLEAN
    assert capsys.readouterr().err.count("host shop") >= 2
    first, _, third = records(host, "dump.written")
    assert first.detail.endswith(" lines")
    assert first.cause == "SIGUSR1 from process 812 (bash) of user 1000"
    assert third.detail == "failed: ZeroDivisionError: division by zero"


# -- reload ----------------------------------------------------------------------------------------


async def test_a_reload_calls_what_was_registered_and_the_process_goes_on() -> None:
    signals = Fake()
    calls: list[str] = []

    async def read() -> None:
        await asyncio.sleep(0.1)
        calls.append("read")

    host = host_of(Thing("web", []))
    host.on_reload(read)
    host.on_reload(lambda: calls.append("apply"))
    later(5, signals.send, "SIGHUP")
    later(6, host.stop)
    assert await host.run(signals) is ExitCode.CLEAN
    assert calls == ["read", "apply"]
    (record,) = records(host, "config.reloaded")
    assert record.cause == "SIGHUP from process 812 (bash) of user 1000"
    assert records(host, "signal.received")[0].data["after"] == "running"


async def test_a_reload_that_fails_keeps_the_old_and_says_so() -> None:
    signals = Fake()
    calls: list[str] = []

    def bad() -> None:
        raise ValueError("timeouts.request: must be a duration")

    host = host_of(Thing("web", []))
    host.on_reload(bad)
    host.on_reload(lambda: calls.append("apply"))
    later(5, signals.send, "SIGHUP")
    later(6, host.stop)
    assert await host.run(signals) is ExitCode.CLEAN
    assert calls == []
    (refused,) = lines(host, "config.refused")
    assert "timeouts.request: must be a duration; the old one stays" in refused
    assert not records(host, "config.reloaded")


async def test_reloads_that_come_during_one_are_one_more_after_it() -> None:
    signals = Fake()
    calls: list[float] = []

    async def slow() -> None:
        calls.append(now())
        await asyncio.sleep(1)

    host = host_of(Thing("web", []))
    host.on_reload(slow)
    for at in (5, 5.1, 5.2, 5.3):
        later(at, signals.send, "SIGHUP")
    later(10, host.stop)
    began = now()
    await host.run(signals)
    assert calls == [began + 5, began + 6]


async def test_a_reload_while_the_process_stops_is_refused_and_one_under_way_ended() -> None:
    signals = Fake()
    host = host_of(Thing("web", [], stop=2))
    host.on_reload(forever)
    later(4, signals.send, "SIGHUP")
    later(5, host.stop)
    later(6, signals.send, "SIGHUP")
    assert await host.run(signals) is ExitCode.CLEAN
    assert lines(host, "config.refused") == ["reload: not while the process is draining"]
    no_breach()


# -- real ones -------------------------------------------------------------------------------------


@pytest.mark.real_time("asyncio", "uvloop")
async def test_a_real_signal_is_heard() -> None:
    host = Host("real", terms=TERMS)
    host.add("web", Thing("web", []))
    with Signals() as signals:
        running = asyncio.ensure_future(host.run(signals))
        while not host.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running is ExitCode.CLEAN
    assert host.cause.startswith("SIGTERM: from ")
    assert len(records(host, "signal.received")) == 1
