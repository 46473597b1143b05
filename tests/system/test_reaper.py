"""Orphans are reaped, and nobody's children are stolen: real processes, real namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast

pytestmark = pytest.mark.system

PROGRAM = """
import asyncio, json, multiprocessing, os, signal, subprocess, sys, threading
from holdfast.runtime.reaper import Reaper, become_subreaper, is_first

kind, loop, on = sys.argv[1:]
before = subprocess.Popen(["sh", "-c", "exit 6"])
if kind == "subreaper":
    become_subreaper()

def orphan(seconds):
    text = f"sleep {seconds} >/dev/null 2>&1 & echo $!"
    return int(subprocess.run(["sh", "-c", text], capture_output=True, check=True).stdout)

def state(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"

def child():
    os._exit(5)

async def main():
    reaper = Reaper(patience=0.5, every=0.05)
    if on == "on":
        reaper.start()
    popen = subprocess.Popen(["sh", "-c", "exit 7"])
    spawned = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 9"], os.environ)
    forked = os.fork()
    if forked == 0:
        os._exit(4)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    in_thread = []
    done = threading.Event()
    def work():
        in_thread.append(subprocess.Popen(["sh", "-c", "exit 8"]))
        done.wait()
    thread = threading.Thread(target=work)
    thread.start()
    aio = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    aio_code = await aio.wait()
    orphans = [orphan(0.1), orphan(0.2), orphan(0.3)]
    for _ in range(100 if on == "on" else 20):
        await asyncio.sleep(0.1)
        if all(state(pid) == "gone" for pid in orphans):
            break
    await asyncio.sleep(1.2)  # more than twice the patience: nobody else may be taken
    found = {
        "first": is_first(),
        "orphans": [state(pid) for pid in orphans],
        "reaped": reaper.reaped,
        "before": before.wait(),
        "popen": popen.wait(),
        "posix_spawn": os.waitstatus_to_exitcode(os.waitpid(spawned, 0)[1]),
        "fork": os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]),
        "asyncio": aio_code,
        "thread": in_thread[0].wait(),
    }
    done.set()
    thread.join()
    process.join()
    found["multiprocessing"] = process.exitcode
    reaper.stop()
    found["restored"] = os.fork.__module__ in ("posix", "os")
    print(json.dumps(found))

if loop == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""

CODES = {
    "before": 6,
    "popen": 7,
    "posix_spawn": 9,
    "fork": 4,
    "asyncio": 3,
    "thread": 8,
    "multiprocessing": 5,
}


def run(kind: str, loop: str, on: str = "on") -> dict[str, Any]:
    first = ["unshare", "-pf", "--mount-proc"] if kind == "first" else []
    done = subprocess.run(
        [*first, sys.executable, "-W", "ignore", "-c", PROGRAM, kind, loop, on],
        env=os.environ | {"PYTHONPATH": str(Path(holdfast.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", ["first", "subreaper"])
def test_orphans_are_reaped_and_children_are_not_stolen(kind: str, loop: str) -> None:
    found = run(kind, loop)
    assert found["first"] is (kind == "first")
    assert found["orphans"] == ["gone"] * 3
    assert found["reaped"] == 3
    assert {name: found[name] for name in CODES} == CODES
    assert found["restored"]


def test_without_a_reaper_they_stay() -> None:
    found = run("first", "asyncio", "off")
    assert found["orphans"] == ["Z"] * 3
    assert {name: found[name] for name in CODES} == CODES
