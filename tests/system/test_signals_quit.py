"""QUIT: every stack is written, and the process ends at once, whatever it is doing."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest

from tests.system.signalling import BLOCK, LOOPS, Program

pytestmark = pytest.mark.system

both_loops = pytest.mark.parametrize("loop", LOOPS)

SERVES = """
    import holdfast
    async def innermost():
        await asyncio.Event().wait()
    async def handler():
        async with holdfast.timeout(30, name="request"):
            await innermost()
    async def main():
        with Signals() as signals, signals.subscribe() as channel:
            tasks = [asyncio.create_task(handler(), name=f"handler {{n}}") for n in range(3)]
            await asyncio.sleep(0.05)
            {then}
    install_quit({options})
    run(main)
"""
WAITS = SERVES.format(then='say("ready"); await asyncio.sleep(60)', options="")
SPINS = SERVES.format(then='threading.Timer(0.5, say, ["ready"]).start(); spin(60)', options="")


def the_dump(errors: str) -> None:
    assert re.search(r"(Current thread|Thread) 0x", errors)  # by faulthandler
    assert "threads\n" in errors  # and ours
    assert "thread" in errors
    assert "MainThread" in errors
    assert "holdfast signals" in errors
    for number in range(3):
        assert re.search(rf"task handler {number}, waits, scope request, (29\S*|30) s left", errors)
    assert re.search(r" handler\n +\S+:\d+ innermost\n +\S+locks\.py:\d+ Event\.wait\n", errors)


@both_loops
@pytest.mark.parametrize("block", [BLOCK, ""])
def test_quit_writes_the_stacks_of_all_tasks_and_threads_and_exits(block: str, loop: str) -> None:
    with Program(WAITS, loop, block=block) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        errors = program.errors()
        program.ended(131)
        assert re.search(r"(Current thread|Thread) 0x", errors)
        assert len(re.findall(r"task handler \d, waits, scope request", errors)) == 3
        if block:
            the_dump(errors)


@both_loops
def test_quit_while_the_loop_is_stuck_in_plain_code(loop: str) -> None:
    with Program(SPINS, loop) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        errors = program.errors()
        program.ended(131)
        the_dump(errors)
        assert re.search(r"spin\n", errors)


def test_quit_while_the_main_thread_waits_for_a_lock() -> None:
    body = """
        install_quit()
        lock = threading.Lock()
        lock.acquire()
        say("ready")
        lock.acquire()
    """
    with Program(body) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        program.ended(131)


def test_quit_while_the_loop_is_in_another_thread() -> None:
    body = WAITS.replace(
        "    run(main)",
        "    thread = threading.Thread(target=run, args=[main])\n"
        "    thread.start()\n"
        "    thread.join()",
    )
    with Program(body) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        errors = program.errors()
        program.ended(131)
        the_dump(errors)


def test_quit_while_c_code_holds_the_lock_of_the_interpreter() -> None:
    # The stacks of the threads come at once, and the end when the call returns. The call is one
    # that no signal interrupts: it waits for a thread of C that waits for a byte of ours.
    body = """
        import ctypes
        c = ctypes.PyDLL(None)
        reader = ctypes.c_ulong()
        stdin = ctypes.c_void_p.in_dll(c, "stdin")
        install_quit()
        c.pthread_create(ctypes.byref(reader), None, c.getc, stdin)
        say("ready")
        c.pthread_join(reader, None)
        time.sleep(60)
    """
    with Program(body, stdin=subprocess.PIPE) as program:
        program.expect("ready")
        program.sleeps()  # in the call, and not on the way to it
        program.send(signal.SIGQUIT)
        written = program.error_lines_until("in <module>")
        assert "Current thread" in written
        assert program.process.poll() is None
        program.say("go on")
        errors = program.errors()
        program.ended(131)
        assert "0 tasks" in errors


def test_quit_in_the_middle_of_a_print() -> None:
    # The file is written past its buffers, which are not to be entered twice.
    body = """
        install_quit()
        say("ready")
        while True:
            print("x" * 10_000, file=sys.stderr)
    """
    with Program(body) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        errors = program.errors()
        program.ended(131)
        assert "0 tasks" in errors
        assert "reentrant" not in errors


def test_pitfall_a_blocked_quit_never_dumps_so_it_is_unblocked() -> None:
    # Blocked by whoever started the program.
    before = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGQUIT])"
    with Program(WAITS, before=before) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        errors = program.errors()
        program.ended(131)
        the_dump(errors)


def test_what_is_called_before_and_what_it_may_do_wrong() -> None:
    options = """before=lambda note: (say(note.name, note.sender), 1 / 0)"""
    with Program(SERVES.format(then='say("ready"); spin(60)', options=options)) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        program.expect(["SIGQUIT", "unknown (a handler is not told)"])
        errors = program.errors()
        program.ended(131)
        assert "ZeroDivisionError" in errors
        the_dump(errors)


def test_the_watchdog_ends_what_does_not_end() -> None:
    options = "before=lambda note: (say('called'), threading.Event().wait())"
    with Program(SERVES.format(then='say("ready"); spin(60)', options=options)) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        program.expect("called")
        errors = program.errors()
        program.ended(1)
        assert "Timeout" in errors  # as faulthandler puts it


def test_quit_that_means_stop_is_a_signal_like_the_others() -> None:
    body = """
        async def main():
            with Signals(chosen) as signals, signals.subscribe() as channel:
                say("ready")
                note = await channel.get()
                say(note.name, note.pid == os.getppid())
        assert install_quit(chosen["SIGQUIT"]) is None
        run(main)
    """
    block = """
from holdfast.domain.lifecycle.meaning import meanings
chosen = meanings(quit="stop")
block_signals(meanings=chosen)
"""
    with Program(body, block=block) as program:
        program.expect("ready")
        program.send(signal.SIGQUIT)
        program.expect(["SIGQUIT", True])
        program.ended()


def test_given_back() -> None:
    body = """
        quitting = install_quit()
        quitting.close()
        say(signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGQUIT)
        time.sleep(60)
    """
    with Program(body) as program:
        program.expect(True)
        program.ended(-signal.SIGQUIT)


def test_into_a_file(tmp_path: object) -> None:
    body = f"""
        file = open({str(tmp_path)!r} + "/dump", "w")
        install_quit(file=file)
        os.kill(os.getpid(), signal.SIGQUIT)
        time.sleep(60)
    """
    with Program(body) as program:
        program.ended(131)
        assert program.errors() == ""
    with open(f"{tmp_path}/dump") as file:
        text = file.read()
    assert "Current thread" in text
    assert "0 tasks" in text


def test_wrong_use() -> None:
    body = """
        import io
        def refused(**options):
            try:
                install_quit(**options)
            except RuntimeError as error:
                say(str(error))
        refused(file=io.StringIO())
        thread = threading.Thread(target=refused)
        thread.start()
        thread.join()
    """
    with Program(body) as program:
        program.expect("the stacks are written by C code: give a file with a descriptor")
        program.expect("QUIT can be taken in the main thread only")
        program.ended()
