"""Stops that never were, as files of records: `python -m tests.apps.timeline_stories` writes them.

They are kept in `timelines/`, so that a change of what is read from them is seen in a diff.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.domain.record import Record

PLACE = Path(__file__).parent / "timelines"
WALL = 1_790_000_000.0
"""Seconds since the epoch at which the clock of these stories was zero."""


class Book:
    """Writes records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def process(self, pid: int) -> Callable[..., None]:
        def tell(
            at: float, kind: str, subject: str = "", detail: str = "", cause: str = "", **data: Any
        ) -> None:
            self.records.append(
                Record(
                    at=at, kind=kind, subject=subject, detail=detail, cause=cause,
                    wall=WALL + at, pid=pid, data=data,
                )
            )  # fmt: skip

        return tell

    def lines(self) -> list[str]:
        ordered = sorted(self.records, key=lambda record: record.at)
        return [json.dumps(record.as_dict(), ensure_ascii=False) for record in ordered]


Tell = Callable[..., None]


def begin(tell: Tell, at: float, *, components: tuple[str, ...], **data: Any) -> None:
    tell(at, "process.started", "shop", "holdfast 0.2.0, Python 3.11.7", service="shop", **data)
    tell(at, "phase.entered", "initializing")
    for number, name in enumerate(components, 1):
        tell(at + 0.11 * number, "component.started", name, f"up in {110 * number} ms")
    ready = at + 0.11 * len(components) + 0.01
    tell(ready, "phase.entered", "running", "all components are up")
    tell(ready, "ready.changed", "ready")


def told(tell: Tell, at: float, **data: Any) -> None:
    sent: dict[str, Any] = {"sender": "process 1 (kubelet) of user 0"} | data
    tell(
        at, "signal.received", "SIGTERM", "sent by kill()", meaning="stop",
        state_before="running", state_after="terminating", **sent,
    )  # fmt: skip
    tell(at + 0.0004, "stop.begun", "shop", "", "SIGTERM", until=at + 11.0, end=at + 16.0)
    tell(at + 0.0005, "phase.entered", "terminating", "", "SIGTERM")
    tell(at + 0.0006, "ready.changed", "unready", "the stop has begun", "SIGTERM")


def ordered(tell: Tell, at: float, cause: str) -> None:
    """As a worker stops: its supervisor says so, and no signal comes."""
    tell(at, "phase.entered", "terminating", "", cause)
    tell(at + 0.0001, "ready.changed", "unready", ready=False)
    tell(at + 0.0002, "stop.begun", "shop", "", cause, until=at + 11.0, end=at + 16.0)


def asked(tell: Tell, at: float, *names: str) -> None:
    for number, name in enumerate(names):
        tell(at + 0.0002 * number, "shutdown.requested", name, "by the drain deadline")


def clean() -> Book:
    """Three components, one of which does not answer, and no request is lost."""
    book = Book()
    tell = book.process(4711)
    begin(tell, 100.0, components=("db", "queue", "http"))
    stop = 8_412.25
    told(tell, stop)
    asked(tell, stop + 0.001, "http", "queue", "db")
    tell(
        stop + 0.002, "drain.step", "announce", "64 connections, 48 requests in flight",
        connections=64, in_flight=48,
    )  # fmt: skip
    tell(stop + 0.004, "shutdown.acknowledged", "http")
    tell(stop + 0.031, "shutdown.acknowledged", "db")
    for number, (at, count) in enumerate(
        ((0.05, 51), (0.12, 44), (0.2, 33), (0.31, 27), (0.42, 18), (0.5, 11))
    ):
        tell(stop + at, "drain.step", "in_flight", in_flight=count, look=number)
    tell(stop + 0.05, "phase.entered", "draining", "all but 'queue' have answered")
    tell(stop + 0.503, "drain.step", "lame_duck_over", "no new connection came any more")
    tell(
        stop + 0.505, "drain.step", "listener_closed", "2 were still in the accept queue", taken=2,
        in_flight=11,
    )  # fmt: skip
    tell(stop + 0.506, "drain.step", "farewell", "WebSockets get 1012")
    for at, count in ((0.62, 8), (0.8, 3), (0.95, 1)):
        tell(stop + at, "drain.step", "in_flight", in_flight=count)
    tell(stop + 0.75, "shutdown.unanswered", "queue", "no answer within 750 ms")
    tell(
        stop + 1.105, "drain.step", "done", "nothing is open any more",
        left=0, closed=16, aborted=0, finished=53, in_flight=0,
    )  # fmt: skip
    tell(stop + 1.108, "component.stopped", "http", "in 1.11 s")
    tell(stop + 1.11, "pool.cleaned", "db", "12 idle connections closed", closed=12)
    tell(stop + 1.31, "component.forced", "queue", "did not answer; cancelled after 200 ms")
    tell(stop + 1.36, "component.stopped", "db", "in 50 ms")
    tell(stop + 1.38, "hook.done", "flush-metrics", "in 18 ms", took=0.018)
    end(
        tell,
        stop + 1.4,
        0,
        requests={"served": 1_204_331},
        cancelled={"deadline": 12},
        leaked=0,
        uptime_s=8313.65,
    )
    return book


def end(tell: Tell, at: float, code: int, **snapshot: Any) -> None:
    tell(at, "phase.entered", "stopped")
    tell(
        at + 0.001, "process.snapshot", "shop", "", tasks=1, threads=3, fds=14,
        memory={"rss": 88_290_816, "peak": 91_000_832}, gc={"collections": [412, 37, 3]},
        **snapshot,
    )  # fmt: skip
    name = {0: "clean", 5: "forced"}[code]
    tell(at + 0.002, "process.ended", name, f"exit code {code}", "SIGTERM", code=code)


def forced() -> Book:
    """A second signal: two streams and a report are cut."""
    book = Book()
    tell = book.process(812)
    begin(tell, 20.0, components=("db", "http"))
    stop = 31.5
    told(tell, stop, sender="process 790 (bash) of user 1000")
    asked(tell, stop + 0.001, "http", "db")
    tell(stop + 0.002, "drain.step", "announce", "9 connections, 5 requests in flight",
         connections=9, in_flight=5)  # fmt: skip
    tell(stop + 0.003, "shutdown.acknowledged", "http")
    tell(stop + 0.004, "shutdown.acknowledged", "db")
    tell(stop + 0.01, "phase.entered", "draining", "all have answered")
    tell(stop + 0.503, "drain.step", "lame_duck_over", "no new connection came any more")
    tell(stop + 0.504, "drain.step", "listener_closed", "0 were still in the accept queue", taken=0)
    tell(stop + 0.505, "drain.step", "farewell", "WebSockets get 1012")
    tell(stop + 1.1, "drain.step", "in_flight", in_flight=3)
    tell(
        stop + 4.2, "signal.received", "SIGINT", "from the terminal", meaning="stop",
        sender="the kernel", state_before="draining", state_after="draining",
    )  # fmt: skip
    tell(stop + 4.201, "drain.step", "deadline", "3 requests are cut", "a second signal",
         in_flight=3)  # fmt: skip
    work: list[dict[str, Any]] = [
        {
            "scope": f"process/{name}", "age_s": 6.1, "origin": "", "request_id": f"r-{number}",
            "task": f"Task-{number}", "waits": "/srv/shop/events.py:31 stream",
        }
        for number, name in enumerate(
            ("GET /events <script>alert(1)</script>", "GET /events", "POST /report?year=2025")
        )
    ]  # fmt: skip
    told_again = {"cut": 3, "work": work, "forced": True}
    names = "; ".join(each["scope"] for each in work)
    tell(stop + 4.202, "drain.cut", "3", names, "told again", **told_again)
    tell(stop + 4.3, "drain.step", "done", "nothing is open any more", left=0, finished=2)
    tell(stop + 4.302, "component.forced", "http", "a second signal")
    tell(stop + 4.36, "component.stopped", "db", "in 58 ms")
    tell(stop + 4.37, "hook.failed", "flush-metrics", "ConnectionError: no route to host")
    end(
        tell,
        stop + 4.4,
        5,
        requests={"served": 812},
        cancelled={"shutdown": 3},
        leaked=0,
        uptime_s=15.9,
    )
    return book


def killed() -> Book:
    """SIGKILL at the end of the grace period: one component hangs, and there is no end."""
    book = Book()
    tell = book.process(7)
    begin(tell, 900.0, components=("db", "consumer", "http"))
    stop = 1500.0
    told(tell, stop, sender="somebody outside the container (pid 0)")
    asked(tell, stop + 0.001, "http", "consumer", "db")
    tell(stop + 0.002, "drain.step", "announce", "30 connections, 12 requests in flight",
         connections=30, in_flight=12)  # fmt: skip
    tell(stop + 0.003, "shutdown.acknowledged", "http")
    tell(stop + 0.02, "shutdown.acknowledged", "db")
    tell(stop + 0.02, "phase.entered", "draining", "")
    tell(stop + 0.52, "drain.step", "lame_duck_over", "no new connection came any more")
    tell(stop + 0.53, "drain.step", "listener_closed", "1 was still in the accept queue", taken=1)
    tell(stop + 2.9, "drain.step", "in_flight", in_flight=1)
    tell(stop + 5.0, "shutdown.unanswered", "consumer", "no answer within 5 s")
    return book


def roll() -> Book:
    """Four workers replaced new before old on SIGHUP; one of the old ones is killed."""
    book = Book()
    boss = book.process(100)

    def worker(at: float, kind: str, pid: int, detail: str = "", **data: Any) -> None:
        told = {"generation": pid // 200, "pid": pid, "slot": pid % 100 - 1}
        boss(at, kind, f"worker {pid}", detail, **told, **data)

    boss(10.0, "process.started", "shop", role="supervisor")
    for number in range(4):
        pid = 101 + number
        worker(10.1 + number / 50, "worker.started", pid)
        begin(book.process(pid), 10.3 + number / 50, components=("http",), role="worker")
        worker(10.8 + number / 50, "worker.ready", pid, "after 700 ms")
    hup = 3610.0
    boss(
        hup, "signal.received", "SIGHUP", "from process 90 (deploy.sh) of user 1000",
        signal="SIGHUP", sender="process 90 (deploy.sh) of user 1000",
    )  # fmt: skip
    for number in range(4):
        old, new = 101 + number, 201 + number
        began = hup + 0.1 + 1.9 * number
        worker(began, "worker.started", new)
        begin(book.process(new), began + 0.2, components=("http",), role="worker")
        worker(began + 0.7, "worker.ready", new, "after 700 ms")
        worker(began + 0.71, "shutdown.requested", old)
        tell = book.process(old)
        ordered(tell, began + 0.72, "another worker takes its place")
        asked(tell, began + 0.721, "http")
        tell(began + 0.722, "drain.step", "announce", "20 connections, 14 requests in flight",
             connections=20, in_flight=14)  # fmt: skip
        tell(began + 0.723, "shutdown.acknowledged", "http")
        tell(began + 0.73, "phase.entered", "draining", "all have answered")
        tell(began + 0.8, "drain.step", "lame_duck_over", "another process accepts")
        tell(began + 0.81, "drain.step", "listener_closed", "it is shared", taken=0, in_flight=6)
        if number == 2:
            worker(began + 1.2, "worker.died", old, "killed by SIGKILL after 490 ms", signal=9)
            continue
        tell(began + 1.75, "drain.step", "done", "nothing is open any more", left=0, finished=14)
        tell(began + 1.76, "component.stopped", "http", "in 1.04 s")
        end(tell, began + 1.78, 0, requests={"served": 312_000 + number}, leaked=0)
        worker(began + 1.82, "worker.retired", old, "ended with exit code 0 after 1.11 s", code=0)
    boss(hup + 7.63, "config.reloaded", "", "every worker is a new one", generation=1)
    return book


STORIES: dict[str, Callable[[], Book]] = {
    "clean": clean,
    "forced": forced,
    "killed": killed,
    "roll": roll,
}


def main() -> None:
    PLACE.mkdir(exist_ok=True)
    for name, make in STORIES.items():
        lines = make().lines()
        if name == "killed":  # it was in the middle of a line
            lines.append(lines[-1][:40])
        text = "\n".join(lines)
        (PLACE / f"{name}.jsonl").write_text(text if name == "killed" else f"{text}\n")


if __name__ == "__main__":
    main()
