"""`holdfast doctor net`: what it measures and reads, what it makes of that, and how it is shown."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.apps.cli import main
from holdfast.apps.doctor import limits, net, rulings, servers
from holdfast.apps.doctor.facts import (
    BUSY,
    IDLE,
    Facts,
    FileFacts,
    HostFacts,
    KernelFacts,
    Lateness,
    LookUp,
    NameFacts,
    PortFacts,
    Reply,
    lateness,
)
from holdfast.apps.doctor.lateness import ASKED, measurements
from holdfast.apps.doctor.rulings import LEAST, Level, Ruling, rule, trusted
from holdfast.apps.doctor.show import lines
from holdfast.runtime.net.attempt import SocketOptions
from holdfast.runtime.net.hosts import ResolvConf

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "doctor.md"
SECONDS = st.floats(min_value=-0.001, max_value=10.0)


# -- timers --------------------------------------------------------------------------------------


@given(st.lists(SECONDS, min_size=1))
def test_a_sum_is_in_order(found: list[float]) -> None:
    summed = lateness("asyncio", "loop", IDLE, 0.01, found)
    assert min(found) == summed.earliest <= summed.p50 <= summed.p99 <= summed.worst == max(found)
    assert sum(late <= summed.p99 for late in found) >= 0.99 * len(found)


def test_ranks_are_the_nearest() -> None:
    summed = lateness("asyncio", "loop", IDLE, 0.01, [n / 1000 for n in range(100, 0, -1)])
    assert (summed.p50, summed.p99, summed.worst, summed.count) == (0.050, 0.099, 0.100, 100)


def late(
    seconds: float, waiter: str = "asyncio", timer: str = "holdfast", load: str = IDLE
) -> Lateness:
    return lateness(waiter, timer, load, 0.01, [seconds])


@given(st.floats(min_value=0, max_value=2.0))
def test_a_trusted_deadline_is_ten_times_as_long_as_timers_are_late(seconds: float) -> None:
    least = trusted([late(seconds / 2), late(seconds)])
    assert least is None or least >= max(LEAST, seconds * 10)
    assert (least is None) is (seconds > 1.0)


def test_what_is_said_of_timers_is_the_worst_of_what_was_tried() -> None:
    found = lateness("asyncio", "holdfast", IDLE, 0.01, [0.001] * 199 + [0.080])
    assert found.p99 < found.worst
    assert trusted([found]) == 1.0
    busy = lateness("asyncio", "holdfast", BUSY, 0.01, [0.3] * 7)
    said = {ruling.id: ruling.what for ruling in rule(timers(found, found, busy))}
    assert said["timers.trusted.asyncio.idle"].endswith("they end within 80 ms (worst of 400)")
    assert "wakes 80 ms late (worst of 400)" in said["timers.idle_late"]
    assert "wake 300 ms late (worst of 7)" in said["timers.busy_late"]


def test_what_is_measured() -> None:
    found = [sample for step in measurements(0.3) for sample in step.run()]
    ours = [sample for sample in found if sample.timer == "holdfast"]
    waiters = {sample.waiter for sample in ours}
    assert "asyncio" in waiters
    assert {(s.waiter, s.load, s.asked) for s in ours} == {
        (waiter, load, asked) for waiter in waiters for load in (IDLE, BUSY) for asked in ASKED
    }
    assert all(sample.count >= 1 for sample in found)
    # Whatever the loop's own timers do, and however busy this machine is.
    assert all(sample.earliest >= 0 for sample in ours)
    selectors = {s.waiter for s in found if s.timer == "selector"}
    assert "select" in selectors
    assert len(found) == 2 * len(ours) + len(selectors) * len(ASKED)


# -- limits --------------------------------------------------------------------------------------


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:9C40 0700000A:01BB 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0100007F:9C41 0700000A:01BB 06 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0100007F:9C42 0800000A:01BB 08 00000000:00000000 00:00000000 00000000     0        0 4 1
   a broken line : 0 01
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue
   0: 0000000000000000FFFF00000100007F:9C43 0000000000000000FFFF00000700000A:01BB 01 00000000:0
   1: 00000000000000000000000001000000:9C44 00000000000000000000000001000000:1F90 01 00000000:0
"""


def test_ports_and_who_has_them(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__sys__net__ipv4__ip_local_port_range="40000\t40009\n",
        proc__sys__net__ipv4__ip_local_reserved_ports="40002-40003,40009,50000\n",
        proc__net__tcp=TCP,
        proc__net__tcp6=TCP6,
    )
    found = limits.ports(root)
    assert found is not None
    assert (found.first, found.last, found.reserved, found.total) == (40000, 40009, 3, 7)
    assert found.in_use == 5
    assert (found.busiest, found.to_busiest) == ("10.0.0.7:443", 3)  # by both families
    assert found.states == {"LISTEN": 1, "ESTABLISHED": 3, "TIME_WAIT": 1, "CLOSE_WAIT": 1}


def test_the_patience_of_the_kernel(tmp_path: Path) -> None:
    where = "proc__sys__net__ipv4__"
    root = write(
        tmp_path,
        **{
            f"{where}tcp_syn_retries": "6\n",
            f"{where}tcp_syn_linear_timeouts": "4\n",
            f"{where}tcp_retries2": "15\n",
            f"{where}tcp_keepalive_time": "7200\n",
        },
    )
    found = limits.kernel(root)
    # Documentation/networking/ip-sysctl.rst says 131 s and 924.6 s.
    assert found.connect_gives_up == 131.0
    assert found.write_gives_up == pytest.approx(924.6)
    assert found.keepalive_begins == 7200.0
    assert found.backlog_most is None
    (root / "proc/sys/net/ipv4/tcp_syn_linear_timeouts").unlink()
    assert limits.kernel(root).connect_gives_up == 127.0


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    assert limits.ports(tmp_path) is None
    assert limits.kernel(tmp_path) == KernelFacts(None, None, None, None)
    assert limits.files(tmp_path).system_open is None
    write(tmp_path, proc__sys__net__ipv4__ip_local_port_range="garbage\n")
    assert limits.ports(tmp_path) is None


def test_this_host_tells() -> None:
    found = limits.ports(Path("/"))
    if found is not None:  # Linux
        assert 0 < found.first <= found.last < 65536
        assert 0 <= found.in_use <= found.last - found.first + 1
    assert limits.files(Path("/")).soft != 0


# -- names ---------------------------------------------------------------------------------------

Respond = Callable[[bytes], bytes | None]


class Servers:
    """Name servers at 127.0.0.1 and on, all at one port, as resolv.conf wants them."""

    def __init__(self, *responds: Respond) -> None:
        self.sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.port = 0
        for number, respond in enumerate(responds, 1):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((f"127.0.0.{number}", self.port))
            self.port = sock.getsockname()[1]
            self.sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock, respond))
            thread.start()
            self.threads.append(thread)

    @staticmethod
    def _serve(sock: socket.socket, respond: Respond) -> None:
        while True:
            message, peer = sock.recvfrom(4096)
            if message == b"end":
                return
            answer = respond(message)
            if answer is not None:
                sock.sendto(answer, peer)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for one in self.sockets:
                sock.sendto(b"end", one.getsockname())
        for thread in self.threads:
            thread.join()
        for one in self.sockets:
            one.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Servers]]:
    made: list[Servers] = []

    def start(*responds: Respond) -> Servers:
        made.append(Servers(*responds))
        return made[-1]

    yield start
    for one in made:
        one.close()


def refuse(message: bytes) -> bytes:
    assert message[2:] == b"\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1"  # the name servers of the root
    return message[:2] + b"\x81\x05" + message[4:]  # REFUSED: it is there


def silent(message: bytes) -> None:
    return None


def another(message: bytes) -> bytes:
    return bytes([message[0] ^ 1]) + message[1:]  # not an answer to this question


def test_servers_that_answer_and_servers_that_do_not(
    tmp_path: Path, serve: Callable[..., Servers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RES_OPTIONS", "attempts:3")
    up = serve(refuse, silent)
    conf = (
        "nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\nsearch a.test b.test\n"
    )
    root = write(
        tmp_path,
        **{
            "etc__resolv.conf": f"{conf}options ndots:5 timeout:1\n",
            "etc__nsswitch.conf": "# x\nhosts: files [NOTFOUND=return] dns # y\n",
        },
    )
    found = servers.names(root=root, port=up.port, limit=0.3)
    first, second, third = found.replies
    assert first.server == "127.0.0.1"
    assert first.took is not None
    assert second == Reply("127.0.0.2", None, "no answer within 0.3 s")
    assert third == Reply("127.0.0.3", None, "Connection refused")
    assert (found.search, found.ndots, found.timeout) == (("a.test", "b.test"), 5, 1.0)
    assert found.attempts == 3
    assert found.sources == ("files", "dns")
    assert found.asked_first == 2
    assert found.bound_late >= 0
    assert [one.name for one in found.look_ups] == ["localhost", servers.NOWHERE]
    assert found.look_ups[0].ended == "found"
    assert found.look_ups[1].ended in ("no such name", "no answer", "failed")


def test_a_message_of_somebody_else_is_no_answer(
    tmp_path: Path, serve: Callable[..., Servers]
) -> None:
    up = serve(another)
    root = write(tmp_path, **{"etc__resolv.conf": "nameserver 127.0.0.1\n"})
    found = servers.names(root=root, port=up.port, limit=0.2)
    assert found.replies == (Reply("127.0.0.1", None, "no answer within 0.2 s"),)


@pytest.mark.parametrize(
    ("text", "name", "searched"),
    [
        # As measured with glibc 2.36, and a server that takes questions and does not answer.
        ("nameserver 10.0.0.1", 10.0, 10.0),
        ("nameserver 10.0.0.1\nsearch a.test b.test c.test\noptions ndots:5", 10.0, 20.0),
        ("nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3", 28.0, 28.0),
        ("nameserver 10.0.0.1\nsearch a.test\noptions timeout:1 attempts:2", 2.0, 4.0),
        ("nameserver 10.0.0.1\nsearch a.test\noptions timeout:1 attempts:1", 1.0, 2.0),
    ],
)
def test_how_long_a_plain_look_up_blocks(text: str, name: float, searched: float) -> None:
    conf = ResolvConf.parse(text)
    assert (servers.dead_name(conf), servers.dead_searched(conf)) == (name, searched)


# -- rulings -------------------------------------------------------------------------------------

HOST = HostFacts("Linux 6.18", "CPython 3.13.0", 2.0, "the machine has 2 CPUs", 0.5, 0.005)
NAMES = NameFacts(
    servers=("10.0.0.53",),
    search=(),
    ndots=1,
    timeout=1.0,
    attempts=1,
    sources=("files", "dns"),
    replies=(Reply("10.0.0.53", 0.002),),
    look_ups=(
        LookUp("localhost", 0.0001, "found", "127.0.0.1"),
        LookUp(servers.NOWHERE, 0.002, "no such name", ""),
    ),
    dead_name=1.0,
    dead_searched=1.0,
    asked_first=0,
    bound_late=0.0002,
)
WELL = Facts(
    HOST,
    (late(0.001), late(0.001, timer="loop"), late(0.002, load=BUSY)),
    NAMES,
    PortFacts(32768, 60999, 0, 3, {"ESTABLISHED": 3}, "10.0.0.7:443", 3),
    KernelFacts(3.0, 3.0, 7200.0, 4096),
    FileFacts(65536, -1, 1000, 1_000_000),
)


def names(**changes: object) -> Facts:
    return replace(WELL, names=replace(NAMES, **changes))  # type: ignore[arg-type]


def timers(*found: Lateness) -> Facts:
    return replace(WELL, timers=found)


def ports(**changes: object) -> Facts:
    assert WELL.ports is not None
    return replace(WELL, ports=replace(WELL.ports, **changes))  # type: ignore[arg-type]


DEAD = Reply("10.0.0.54", None, "no answer within 1 s")
STORIES: dict[str, tuple[Level, Facts]] = {
    "timers.trusted.asyncio.idle": (Level.BAD, timers(late(1.5))),
    "timers.trusted.asyncio.busy_thread": (Level.BAD, timers(late(1.5, load=BUSY))),
    "timers.ours_early": (Level.BAD, timers(late(-0.0001))),
    "timers.uvloop_early": (Level.NOTE, timers(late(-0.0009, "uvloop", "loop"))),
    "timers.idle_late": (Level.WARNING, timers(late(0.006))),
    "timers.busy_late": (Level.NOTE, timers(late(0.001), late(0.012, load=BUSY))),
    "names.dead": (Level.BAD, names(replies=(DEAD,))),
    "names.some_dead": (Level.WARNING, names(replies=(DEAD, Reply("10.0.0.53", 0.01)))),
    "names.answer": (Level.WARNING, names(replies=(Reply("10.0.0.53", 0.3),))),
    "names.patience": (Level.WARNING, names(dead_searched=20.0, search=("a.test",))),
    "names.ndots": (Level.WARNING, names(asked_first=3, ndots=5, search=("a", "b", "c"))),
    "names.invented": (
        Level.WARNING,
        names(look_ups=(LookUp(servers.NOWHERE, 0.01, "found", "10.9.9.9"),)),
    ),
    "names.look_up": (Level.BAD, names(look_ups=(LookUp("db", 1.0, "no answer", "asked x"),))),
    "names.bound": (Level.WARNING, names(bound_late=0.06)),
    "ports.range": (Level.BAD, ports(to_busiest=25_000)),
    "ports.close_wait": (Level.WARNING, ports(states={"CLOSE_WAIT": 2000})),
    "ports.fin_wait2": (Level.WARNING, ports(states={"FIN_WAIT2": 2000})),
    "kernel.connect": (Level.NOTE, replace(WELL, kernel=KernelFacts(131.0, None, None, None))),
    "kernel.write": (Level.NOTE, replace(WELL, kernel=KernelFacts(None, 924.6, None, None))),
    "files.limit": (Level.WARNING, replace(WELL, files=FileFacts(1024, 524288, None, None))),
    "files.system": (Level.BAD, replace(WELL, files=FileFacts(-1, -1, 90, 100))),
}


def by_id(found: list[Ruling]) -> dict[str, Ruling]:
    made = {ruling.id: ruling for ruling in found}
    assert len(made) == len(found)
    return made


@pytest.mark.parametrize("name", STORIES)
def test_what_is_wrong_is_ruled_and_says_what_to_do(name: str) -> None:
    level, facts = STORIES[name]
    ruling = by_id(rule(facts))[name]
    assert ruling.level is level
    assert ruling.what
    assert ruling.do


def test_what_is_said_of_vanished_peers_is_so_of_what_is_dialled_by_default() -> None:
    ruling = by_id(rule(STORIES["kernel.write"][1]))["kernel.write"]
    assert "no TCP_USER_TIMEOUT unless it is set" in ruling.do
    assert SocketOptions().user_timeout is None


def test_where_all_is_well_nothing_is_to_be_done() -> None:
    found = by_id(rule(WELL))
    assert {ruling.level for ruling in found.values()} == {Level.OK}
    assert not any(ruling.do for ruling in found.values())
    assert "deadlines of 20 ms and more" in found["timers.trusted.asyncio.idle"].what


def test_what_can_be_trusted_comes_first_then_what_matters_most() -> None:
    facts = replace(STORIES["names.ndots"][1], files=FileFacts(-1, -1, 90, 100))
    found = [ruling.id for ruling in rule(facts)]
    assert found[:2] == ["timers.trusted.asyncio.idle", "timers.trusted.asyncio.busy_thread"]
    assert found[2:4] == ["files.system", "names.ndots"]


def test_little_of_everything_is_not_known() -> None:
    facts = Facts(
        replace(HOST, load=None),
        (),
        names(sources=()).names,
        None,
        KernelFacts(None, None, None, None),
        FileFacts(-1, -1, None, None),
    )
    assert {ruling.level for ruling in rule(facts)} == {Level.OK}
    assert any("as many files as it likes" in ruling.what for ruling in rule(facts))
    assert list(lines(facts, rule(facts)))


def test_the_page_lists_every_ruling() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = [
        row.split("`")[1] for row in text.splitlines() if re.match(r"\| `(\w+)\.[\w.]+` ", row)
    ]
    told = {
        name.replace("asyncio", "LOOP").replace("uvloop", "LOOP").replace("busy_thread", "LOAD")
        for name in STORIES
    } - {"timers.trusted.LOOP.idle"}
    assert sorted(listed) == sorted(told)
    written = set(re.findall(r'"((?:names|ports|files|kernel|timers)\.\w+)"', _source()))
    assert written <= told


def _source() -> str:
    return Path(rulings.__file__).read_text(encoding="utf-8")


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(asked: tuple[str, ...], *, root: Path) -> NameFacts:
        more = tuple(LookUp(name, 0.001, "found", "10.0.0.7\x1b[31m") for name in asked)
        return replace(NAMES, look_ups=NAMES.look_ups + more)

    monkeypatch.setattr(net, "names", found)


@pytest.mark.usefixtures("quick")
def test_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "net", "--json", "--seconds", "0.1", "--name", "db.local"])
    said = json.loads(capsys.readouterr().out)
    assert code == (0 if said["ok"] else 1)
    assert set(said) == {"ok", "host", "timers", "names", "ports", "kernel", "files", "rulings"}
    assert said["names"]["look_ups"][2]["name"] == "db.local"
    assert {row["asked"] for row in said["timers"]} == set(ASKED)
    assert {row["id"] for row in said["rulings"]} >= {"timers.trusted.asyncio.idle", "files.limit"}
    assert said["ok"] is all(row["level"] != "bad" for row in said["rulings"])


@pytest.mark.usefixtures("quick")
def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "net", "--seconds", "0.1", "--name", "db.local"])
    said = capsys.readouterr().out
    assert "timers: how late, in ms" in said
    assert re.search(r"Holdfast on asyncio, idle +\d", said)
    assert "10.0.0.53: answers in 2 ms" in said
    assert "db.local: found after 1 ms, 10.0.0.7?[31m" in said  # nothing else reaches a terminal
    assert re.search(r"^(ok|bad) +asyncio, idle: ", said, re.MULTILINE)


def test_what_is_bad_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(net, "names", lambda asked, *, root: replace(NAMES, replies=(DEAD,)))
    monkeypatch.setattr(net, "measurements", lambda seconds: ())
    assert main(["doctor", "net"]) == 1
    said = capsys.readouterr().out
    assert "bad      no name server answers: 10.0.0.54 (no answer within 1 s)" in said


def test_a_wrong_number_of_seconds() -> None:
    assert main(["doctor", "net", "--seconds", "0"]) == 2
