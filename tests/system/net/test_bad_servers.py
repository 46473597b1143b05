"""13 bad servers, each of our clients on each: over after its second, and in the right phase.

On a network of its own, where packets are dropped and the name server is dead; where no such
network can be made, on loopback with stand-ins for both. Calls run side by side, each in a process
of its own, so that all of it takes seconds.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from bench.net import ground
from bench.net.arena import run
from bench.net.bad import FINE, SCENARIOS
from bench.net.cell import Result
from bench.net.ours import OURS

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]

CAP = 5.0
LATE = 3.0
"""Seconds after which a call of one second has not kept it, however busy the machine is."""
REPORTED = 1.1
EXIT = 7.0
"""Seconds in which a process has ended unless it waits for the look-up: that takes nine more."""
DIALLING = ("dns.resolve", "tcp.connect", "proxy.connect", "tls.handshake")
ALL = tuple(client.name for client in OURS)
STAND_INS = ("dns", "syn", "syn3", "backlog")

Found = dict[tuple[str, str], Result | str]


def grounds() -> Iterator[tuple[str, str]]:
    """The pairs of a network and a client. On loopback, with a namespace, a sample."""
    for client in OURS:
        yield "namespace", client.name
    for client in OURS:
        sample = client.name in ("holdfast streams", "holdfast requests")
        # That one asks the servers of resolv.conf, for which nothing can stand in.
        able = not client.name.endswith("dnspython")
        if sample or (able and ground.why_no_namespace()):
            yield "loopback", client.name


def scenarios(network: str) -> tuple[str, ...]:
    if network == "loopback" and not ground.why_no_namespace():
        return STAND_INS
    return (FINE.name, *SCENARIOS)


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Found]:
    """What all clients found that this run asks for, measured once for each network."""
    wanted: dict[str, list[str]] = {}
    for item in request.session.items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path == request.path and "network" in params:
            wanted.setdefault(params["network"], []).append(params["client"])
    return {
        network: collect(
            [(client, name) for name in scenarios(network) for client in clients], network
        )
        for network, clients in wanted.items()
        if network == "loopback" or not ground.why_no_namespace()
    }


def collect(pairs: list[tuple[str, str]], network: str) -> Found:
    there: Found = {}
    for result in run(pairs, namespace=network == "namespace", cap=CAP):
        if isinstance(result, dict):
            there |= {(name, FINE.name): why for name, why in result.items()}
        else:
            there[result.client, result.scenario] = result
    return there


@pytest.mark.parametrize(("network", "client"), list(grounds()))
def test_a_second_is_a_second(
    found: dict[str, Found], network: str, client: str, record_property: pytest.RecordProperty
) -> None:
    if network == "namespace" and (why := ground.why_no_namespace()):
        pytest.skip(why)
    mine = found[network]
    if isinstance(absent := mine.get((client, FINE.name)), str):
        assert "'holdfast" not in absent, absent
        pytest.skip(f"{client}: {absent}")
    wrong: list[str] = []
    for name in scenarios(network):
        result = mine[client, name]
        assert isinstance(result, Result)
        wrong += [f"{name}: {what}" for what in faults(result)]
        if result.took is not None and result.took > REPORTED:
            record_property(f"late in {name}", round(result.took, 3))
    assert not wrong, "\n".join(wrong)


def faults(result: Result) -> Iterator[str]:
    """Everything that is wrong with how a call ended."""
    if result.took is None:
        yield f"not over after {CAP} s, {result.error} {result.said}"
        return
    if result.scenario == FINE.name:
        if result.status != 200:
            yield f"{result.error}: {result.said}"
    else:
        yield from wrong_end(result)
    yield from left_behind(result)
    if result.exit is None or result.exit > EXIT:
        yield f"the process had not ended {result.exit} s later"


def wrong_end(result: Result) -> Iterator[str]:
    assert result.took is not None
    if not 0.99 <= result.took < LATE:
        yield f"over after {result.took:.3f} s"
    if "TimeoutError" not in result.bases or "DeadlineExceeded" not in (
        result.error,
        *result.bases,
    ):
        yield f"not our time-out: status {result.status}, {result.error}: {result.said}"
        return
    phase = SCENARIOS[result.scenario].phase
    trailed = next(client.trailed for client in OURS if client.name == result.client)
    if result.phase != (phase if trailed or phase in DIALLING else ""):
        yield f"phase {result.phase or 'none'} instead of {phase}: {result.said}"
    elif result.phase and result.event != f"{phase}.timeout":
        yield f"event {result.event or 'none'} instead of {phase}.timeout: {result.said}"


def left_behind(result: Result) -> Iterator[str]:
    called, closed = dict(result.called.descriptors), dict(result.closed.descriptors)
    if result.scenario == FINE.name:
        called.pop("tcp", None)  # kept alive for the next call
    if result.scenario == "dns":
        # The C library cannot be called back: it asks on in a thread that nobody waits for.
        called.pop("udp", None)
        closed.pop("udp", None)
    for when, there in (("call", called), ("close", closed)):
        if left := {kind: there[kind] for kind in ("tcp", "udp") if kind in there}:
            yield f"left open after the {when}: {left}"
    if result.called.threads or result.closed.threads:
        yield f"threads are left that the process waits for: {result.closed}"


def test_plain_clients_never_come_back_from_a_trickle() -> None:
    """So the servers are bad. `timeout=1` is for each read, and each read is quick."""
    clients = ("requests", "httpx, sync", "httpx")
    bad = collect(
        [(one, name) for name in ("nohdr", "hdrT", "body") for one in clients], "loopback"
    )
    for (client, name), result in bad.items():
        assert isinstance(result, Result)
        if name == "nohdr":  # where nothing at all comes, they do keep it
            assert result.error == "ReadTimeout"
        else:
            assert result.took is None, (client, result)
    assert len(bad) == 9


def test_nothing_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = uuid4().hex
    monkeypatch.setenv("BENCH_NET_MARK", mark)
    pairs = [("streams", "fine"), ("streams", "nohdr"), ("urllib.request", "body")]
    results = run(pairs, namespace=not ground.why_no_namespace())
    first = next(results)
    assert isinstance(first, Result)
    assert first.status == 200
    assert len(marked(mark)) >= 3  # the arena, the servers, and clients that wait
    results.close()  # as when a test fails
    limit = time.monotonic() + 10
    while marked(mark):
        assert time.monotonic() < limit, marked(mark)
        time.sleep(0.01)


def marked(mark: str) -> list[str]:
    """Processes that were started with `mark` in their environment, but this one."""
    there: list[str] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes() and int(path.name) != os.getpid():
                there.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has just ended, or is somebody else's
    return there


def test_a_host_without_the_programs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nft" else f"/bin/{name}")
    why = ground.why_no_namespace.__wrapped__()
    assert why == "not installed: nft (`sh tools/packages.sh` as root does it)"
