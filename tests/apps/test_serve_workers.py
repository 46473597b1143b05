"""The parts between a supervisor and its workers: what is handed over, the link, the processes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from holdfast.apps.serve.handover import Handover, handover_from_json
from holdfast.apps.serve.offspring import DeathWatch, start_python
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.workerlink import StopOrder, SupervisorEnd, WorkerEnd
from holdfast.domain.record import Record

PATIENCE = 15.0


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, PATIENCE))


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110  # what is waited for has no event
        await asyncio.sleep(0.005)


# -- what is handed over ---------------------------------------------------------------------------


def handover(plan: Plan) -> Handover:
    return Handover(plan, "http://[::1]:80", (5, 6), 4711, 1, 3, ("", "/somewhere"), 17.25)


def test_a_plan_arrives_as_it_was() -> None:
    plan = Plan(
        "shop.main:app",
        factory=True,
        host="::1",
        port=0,
        workers=7,
        access_log=False,
        config=Path("a/päth.toml"),
        source=Path("/x y.toml"),
        data={"timeouts": {"request": "1s", "slow": float("inf")}, "routes": [{"path": "/x"}]},
        home=Path("/srv"),
    )
    given = handover(plan)
    text = given.to_json()
    assert "\n" not in text
    assert handover_from_json(text) == given
    assert {item.name for item in fields(Plan)} == set(json.loads(text)["plan"])


def test_tuples_and_tables_keep_their_kind() -> None:
    plan = Plan("a:b", data={"t": (1, (Path("x"), [None, True])), "m": {"$other": 1}})
    assert handover_from_json(handover(plan).to_json()).plan == plan


def test_what_is_not_plain_is_refused_by_name() -> None:
    plan = Plan("a:b", data={"stop": {"at": datetime.date(2026, 1, 1)}})
    with pytest.raises(TypeError, match=r"data\.stop\.at: .*2026.* cannot be handed over"):
        handover(plan).to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"plan": {"no": 1}}', "null", "x"])
def test_other_texts_are_no_handover(text: str) -> None:
    with pytest.raises(ValueError, match=r"hands over|Expecting value"):
        handover_from_json(text)


# -- the link --------------------------------------------------------------------------------------


class Link:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.heard: list[dict[str, object]] = []
        self.orders: list[StopOrder] = []
        self.up = SupervisorEnd(ours, lambda message: self.heard.append(dict(message)))
        self.raw = theirs
        self.down = WorkerEnd(theirs)

    def close(self) -> None:
        self.down.close()
        self.up.close()
        with contextlib.suppress(OSError):
            self.raw.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def linked() -> Iterator[Link]:
    link = Link()
    try:
        yield link
    finally:
        link.close()
        link.raw.close()


def test_each_side_hears_the_other() -> None:
    async def main() -> None:
        with linked() as link:
            long = "x" * 3_000_000  # far more than the kernel takes at once
            link.up.say(long)
            got: list[bytes] = []
            reader = threading.Thread(target=lambda: got.append(link.down.handover()))
            reader.start()
            await until(lambda: got)
            reader.join()
            assert got[0] == long.encode() + b"\n"
            link.down.obey(link.orders.append)
            link.down.listen(99.0)
            link.up.stop(StopOrder(2.5, final=True, cause="x"))
            link.up.stop(StopOrder(1.0, force=True, stop="7@1.5"))
            link.down.phase("running")
            link.down.ready()
            link.down.record(Record(1.0, "hook.done", "a"))
            await until(lambda: len(link.heard) == 3 and len(link.orders) == 2)
            assert link.orders == [
                StopOrder(2.5, final=True, cause="x"),
                StopOrder(1.0, force=True, stop="7@1.5"),
            ]
            assert link.heard[:2] == [{"phase": "running"}, {"ready": True}]
            record: Any = link.heard[2]["record"]
            assert record["kind"] == "hook.done"

    run(main())


def test_nonsense_is_logged_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with linked() as link:
            link.raw.sendall(b'{"phase": "a"}\nnonsense\n[]\n{"phase": ')
            link.raw.sendall(b'"b"}\n')
            link.down.obey(link.orders.append)
            link.down.listen(99.0)
            link.up.say('{"stop": 1}')
            link.up.say("nonsense")
            link.up.stop(StopOrder(1.0))
            await until(lambda: len(link.heard) == 2 and link.orders)
            assert link.heard == [{"phase": "a"}, {"phase": "b"}]

    run(main())
    assert sum("nobody understands" in line for line in caplog.messages) == 4


def test_a_supervisor_that_does_not_listen_holds_nobody() -> None:
    async def main() -> None:
        with linked() as link:
            record = Record(1.0, "hook.done", detail="x" * 10_000)
            for _ in range(500):
                link.down.record(record)
            # What was kept goes out when the worker hangs up, with the number of the rest.
            closing = threading.Thread(target=link.down.close)
            closing.start()
            await until(lambda: any("lost" in message for message in link.heard))
            closing.join()
            lost: Any = link.heard[-1]["lost"]
            assert len(link.heard) - 1 + lost == 500
            assert lost > 300

    run(main())


def test_what_a_signal_handler_says_does_not_wait_for_the_code_that_it_interrupted() -> None:
    async def main() -> None:
        with linked() as link:
            lock: threading.Lock = vars(link.down)["_lock"]
            with lock:  # as the main thread does in the middle of saying something
                link.down.record(Record(1.0, "dump.written"))
            link.down.phase("stopped")
            threading.Thread(target=link.down.close).start()
            await until(lambda: len(link.heard) == 2)
            assert link.heard == [{"phase": "stopped"}, {"lost": 1}]

    run(main())


def test_the_last_words_come_before_the_end() -> None:
    async def main() -> None:
        with linked() as link:
            link.down.phase("stopped")
            link.raw.shutdown(socket.SHUT_WR)
            link.up.close()
            assert link.heard == [{"phase": "stopped"}]
            link.up.stop(StopOrder(1.0))  # too late; does no harm

    run(main())


ORPHAN = """
import os, socket, sys, threading
from holdfast.apps.serve.workerlink import WorkerEnd
link = WorkerEnd(socket.socket(fileno=int(sys.argv[1])))
told = threading.Event()
def stop(order):
    print(order.orphan, order.final, order.cause, flush=True)
    told.set()
if sys.argv[2] != "loads":
    link.obey(stop)
link.listen(0.2)
print(open("/proc/self/task/%d/status" % os.getpid()).read().split("SigBlk:")[1].split()[0])
if sys.argv[2] == "obeys":
    told.wait()
    link.close()
else:
    threading.Event().wait()
"""


@pytest.mark.parametrize(("how", "code"), [("obeys", 0), ("hangs", 4), ("loads", 143)])
def test_a_worker_without_a_supervisor_stops_or_is_ended(how: str, code: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", ORPHAN, str(theirs.fileno()), how],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "0" * 16  # the mask of the main thread is as ever
        ours.close()
        output, errors = child.communicate(timeout=PATIENCE)
    assert output.strip() == ("" if how == "loads" else "True True the supervisor is gone")
    assert child.returncode == code
    assert ("ended by force" in errors) == (how == "hangs")


# -- the processes ---------------------------------------------------------------------------------


def test_a_child_starts_clean_whatever_its_parent_has_done(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(
        "import os, sys\n"
        "text = open('/proc/self/status').read()\n"
        "os.write(int(sys.argv[1]), ' '.join(text.split(name + ':')[1].split()[0]\n"
        "         for name in ('SigBlk', 'SigIgn')).encode())\n"
    )
    ours, theirs = os.pipe()
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(tmp_path)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    handlers = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGHUP)}
    try:
        pid = start_python("show", str(theirs), inherit=[theirs])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    assert not os.get_inheritable(theirs)
    os.close(theirs)
    blocked, ignored = (int(word, 16) for word in os.read(ours, 99).split())
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert blocked == 0
    # Python ignores two at its start, and the C library keeps two for itself.
    hup, own = 1 << (signal.SIGHUP - 1), {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}
    assert ignored & ~sum(1 << (number - 1) for number in own) == hup


def python(code: str) -> int:
    return os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)


@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize(("code", "told"), [("exit(7)", 7), ("os.kill(os.getpid(), 9)", -9)])
def test_a_death_is_noticed(polled: bool, code: str, told: int) -> None:
    pid = python(f"import os; {code}")

    async def main() -> None:
        deaths: list[tuple[int, int | None]] = []
        before = len(os.listdir("/proc/self/fd"))
        DeathWatch(pid, lambda *death: deaths.append(death), polled=polled)
        assert not deaths
        await until(lambda: deaths)
        assert deaths == [(pid, told)]
        assert len(os.listdir("/proc/self/fd")) == before

    run(main())


def test_a_death_that_somebody_else_was_told_of_is_one() -> None:
    pid = python("")
    os.waitpid(pid, 0)

    async def main() -> None:
        deaths: list[tuple[int, int | None]] = []
        DeathWatch(pid, lambda *death: deaths.append(death), polled=True)
        await until(lambda: deaths)
        assert deaths == [(pid, None)]

    run(main())
