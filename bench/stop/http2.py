"""HTTP/2 at SIGTERM: streams under way, streams opened after it, and what the connections are told.

Frames are written and read one by one, because a client library forbids what has to be seen here:
answers that come after a GOAWAY. Four connections open a stream every 50 ms until they are told to
go away; two are idle.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from threading import Thread
from typing import Any, Final

from bench._harness import Sheet, Tell
from bench.stop.attempt import Attempts
from bench.stop.process import free_port, running
from bench.stop.servers import Ask, Server, chosen, versions

__all__ = ["http2_at_stop", "measure"]

VARIANTS: Final[list[dict[str, Any]]] = [{}]
BUSY: Final = 4
IDLE: Final = 2
EVERY: Final = 0.05
BEFORE: Final = 0.6
TIMEOUT: Final = 5.0
LIMIT: Final = 15.0
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REFUSED_STREAM: Final = 7


@dataclass
class Stream:
    opened: float
    status: int = 0
    outcome: str = ""  # ok, STATUS, RST n; empty while it is open


@dataclass
class Connection:
    """One client connection, driven by a thread of its own."""

    port: int
    busy: bool
    streams: dict[int, Stream] = field(default_factory=dict[int, Stream])
    away: list[tuple[float, int, int]] = field(default_factory=list[tuple[float, int, int]])
    at_once: int = 100
    end: str = ""
    ended: float = 0.0

    def run(self, until: float) -> None:
        from hpack import Decoder, Encoder
        from hyperframe.frame import SettingsFrame

        self.encoder, self.decoder = Encoder(), Decoder()
        self.sock = socket.create_connection(("127.0.0.1", self.port))
        with self.sock:
            self.sock.sendall(PREFACE + SettingsFrame(0).serialize())
            self._drive(until)
            self.ended = time.monotonic()

    def _drive(self, until: float) -> None:
        data, due = b"", time.monotonic()
        try:
            while (now := time.monotonic()) < until:
                if now >= due and self._may_open():
                    self._open(now)
                    due = now + EVERY
                if select.select([self.sock], [], [], 0.01)[0]:
                    more = self.sock.recv(65536)
                    if not more:
                        self.end = "FIN"
                        return
                    data = self._read(data + more)
        except OSError:
            self.end = "reset"

    def _may_open(self) -> bool:
        """A client that behaves: not after a GOAWAY, and not more at once than it was allowed."""
        if self.away or (self.streams and not self.busy):
            return False
        return sum(not stream.outcome for stream in self.streams.values()) < self.at_once

    def _open(self, now: float) -> None:
        from hyperframe.frame import HeadersFrame

        number = 1 + 2 * len(self.streams)
        path = "/wait/300" if self.busy else "/hello"
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "bench"), (":path", path)]
        frame = HeadersFrame(number, self.encoder.encode(fields))
        frame.flags |= {"END_HEADERS", "END_STREAM"}
        self.streams[number] = Stream(now)
        self.sock.sendall(frame.serialize())

    def _read(self, data: bytes) -> bytes:
        """Take all whole frames; what remains."""
        from hyperframe.frame import Frame

        while len(data) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            if len(data) < 9 + length:
                break
            frame.parse_body(memoryview(data[9 : 9 + length]))
            data = data[9 + length :]
            self._take(frame)
        return data

    def _take(self, frame: Any) -> None:
        from hyperframe import frame as frames

        match frame:
            case frames.SettingsFrame() if "ACK" not in frame.flags:
                at_once = frames.SettingsFrame.MAX_CONCURRENT_STREAMS
                self.at_once = frame.settings.get(at_once, self.at_once)
                self.sock.sendall(frames.SettingsFrame(0, flags=["ACK"]).serialize())
            case frames.PingFrame() if "ACK" not in frame.flags:
                ack = frames.PingFrame(0, frame.opaque_data, flags=["ACK"])
                self.sock.sendall(ack.serialize())
            case frames.GoAwayFrame():
                self.away.append((time.monotonic(), frame.error_code, frame.last_stream_id))
            case frames.RstStreamFrame():
                self.streams[frame.stream_id].outcome = f"RST {frame.error_code}"
            case frames.HeadersFrame():
                fields = {str(name): str(value) for name, value in self._decoded(frame.data)}
                self.streams[frame.stream_id].status = int(fields[":status"])
            case _:
                pass
        if "END_STREAM" in frame.flags:
            stream = self.streams[frame.stream_id]
            stream.outcome = "ok" if stream.status == 200 else str(stream.status)

    def _decoded(self, data: bytes) -> list[tuple[Any, Any]]:
        return [(name, value) for name, value in self.decoder.decode(data)]

    def fates(self, told: float) -> Counter[str]:
        """What became of the streams that were open at the instant, or opened after it."""
        last = self.away[-1][2] if self.away else 2**31
        found: Counter[str] = Counter()
        for number, stream in self.streams.items():
            when = "late" if stream.opened >= told else "early"
            outcome = stream.outcome
            if not outcome or outcome == f"RST {REFUSED_STREAM}":
                told_so = number > last or outcome
                outcome = "refused, may be repeated" if told_so else "lost"
            found[f"{when} {outcome}"] += 1
        return found


def measure(variant: dict[str, Any], quick: bool, tell: Tell) -> Iterator[Sheet]:
    servers = chosen(variant.get("servers"), "http2")
    runs = 2 if quick else 10
    attempts = Attempts()
    for turn in range(runs):
        for index, server in enumerate(servers):
            tell((turn + index / len(servers)) / runs, server.name)
            attempts(server, partial(http2_at_stop, server))
    columns = ["server", "opened before", "opened after", "GOAWAY (code, last) at s", "idle ones",
               "exit s", "rc"]  # fmt: skip
    title = f"HTTP/2 at SIGTERM: {BUSY} busy and {IDLE} idle connections, {runs} runs"
    sheet = Sheet(title, columns, data=attempts.found)
    for server in servers:
        mine = [one for one in attempts.found if one["server"] == server.name]
        if mine:
            sheet.rows.append(_row(mine))
    sheet.notes = [f"{versions(servers)}.", *attempts.notes()]
    yield sheet


def http2_at_stop(server: Server, busy: int = BUSY, idle: int = IDLE) -> dict[str, Any]:
    """Fates of streams, GOAWAY frames of the first busy and the first idle connection."""
    ask = Ask(free_port(), http2=True, timeout=TIMEOUT)
    with running(server, ask) as process:
        until = time.monotonic() + BEFORE + LIMIT
        crowd = [Connection(ask.port, index < busy) for index in range(busy + idle)]
        threads = [Thread(target=one.run, args=(until,), daemon=True) for one in crowd]
        for thread in threads:
            thread.start()
        time.sleep(BEFORE)
        told = process.signal()
        code = process.wait(LIMIT)
        for thread in threads:
            thread.join(LIMIT)
    fates: Counter[str] = Counter()
    for one in crowd:
        fates += one.fates(told)
    return {
        "server": server.name,
        "fates": dict(fates),
        "away": _shown(crowd[0], told),
        "idle": f"{_shown(crowd[-1], told)} {crowd[-1].end}".strip(),
        "exit": process.ended - told,
        "rc": code,
    }


def _shown(one: Connection, told: float) -> str:
    frames = (
        f"({code}, {'2^31-1' if last == 2**31 - 1 else last}) {at - told:.2f}"
        for at, code, last in one.away
    )
    return ", ".join(frames) or "none"


def _row(found: list[dict[str, Any]]) -> list[str]:
    total: Counter[str] = Counter()
    for one in found:
        total += Counter(one["fates"])

    def said(when: str) -> str:
        pairs = sorted((key, n) for key, n in total.items() if key.startswith(when))
        return ", ".join(f"{n} {key.partition(' ')[2]}" for key, n in pairs) or "none"

    last = found[-1]
    exits = sorted(one["exit"] for one in found)
    codes = ", ".join(sorted({str(one["rc"]) for one in found}))
    return [last["server"], said("early"), said("late"), last["away"], last["idle"],
            f"{exits[len(exits) // 2]:.2f}", codes]  # fmt: skip
