"""Signals as a process gets them; each pitfall that is known is a test of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.system.signalling import BLOCK, LOOPS, Program, inside

pytestmark = pytest.mark.system

both_loops = pytest.mark.parametrize("loop", LOOPS)

# Says how it reads, then every note until TERM.
UNTIL_TERM = """
async def main():
    with Signals() as signals, signals.subscribe() as channel:
        say(signals.source, signals.why)
        async for note in channel:
            say(note.name, note.sender)
            if note.name == "SIGTERM":
                break
run(main)
say("over")
"""
SIGNALFD_IS_MISSING = """
    import ctypes
    def missing(*args, **options):
        raise OSError("no library")
    ctypes.CDLL = missing
"""
NOTHING_TO_READ_WITH = f"""{SIGNALFD_IS_MISSING}
    del signal.sigwaitinfo, signal.sigtimedwait
"""
WAYS = {
    "signalfd": "",
    "sigwaitinfo": SIGNALFD_IS_MISSING,
    "handlers": NOTHING_TO_READ_WITH,
}
ways = pytest.mark.parametrize("way", WAYS)


@both_loops
@ways
def test_signals_reach_a_channel_and_say_who_sent_them(way: str, loop: str) -> None:
    with Program(UNTIL_TERM, loop, before=WAYS[way]) as program:
        source, why = program.next()
        assert source == way
        assert bool(why) == (way == "handlers")
        me = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()}) of user 0"
        sender = "unknown (a handler is not told)" if way == "handlers" else me
        for name in ("SIGUSR1", "SIGHUP", "SIGINT", "SIGTERM"):
            program.send(signal.Signals[name])
            program.expect([name, sender])
        program.expect("over")
        program.ended()


@both_loops
@ways
def test_everything_known_about_a_signal(way: str, loop: str) -> None:
    body = """
        async def main():
            begun = time.monotonic()
            with Signals() as signals:
                with signals.subscribe("term") as channel:
                    say("ready")
                    note = await channel.get()
            say(note.as_dict(), begun <= note.at <= time.monotonic())
        run(main)
    """
    with Program(body, loop, before=WAYS[way]) as program:
        program.expect("ready")
        program.send(signal.SIGTERM)
        note, in_time = program.next()
        assert in_time
        assert (note["signal"], note["number"]) == ("SIGTERM", signal.SIGTERM)
        if way == "handlers":
            assert (note["pid"], note["uid"], note["code"]) == (None, None, "")
        else:
            assert (note["pid"], note["uid"]) == (os.getpid(), os.getuid())
            assert note["code"] == "SI_USER"
            assert "pytest" in note["command"] or "python" in note["command"]
        program.ended()


# -- pitfall: threads that were started before the mask ------------------------------------------

A_THREAD_BEFORE = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True, name="early").start()
"""


@both_loops
def test_pitfall_threads_before_the_mask_take_signals_so_handlers_do(loop: str) -> None:
    with Program(UNTIL_TERM, loop, before=A_THREAD_BEFORE) as program:
        source, why = program.next()
        assert source == "handlers"
        assert "was started before the signals were blocked" in why
        for _ in range(5):
            program.send(signal.SIGUSR1)
            program.expect(["SIGUSR1", "unknown (a handler is not told)"])
        program.send(signal.SIGTERM)
        program.expect(["SIGTERM", "unknown (a handler is not told)"], "over")
        program.ended()


def test_without_the_fall_back_a_thread_before_the_mask_is_death() -> None:
    # What the test above would look like if nothing were done about it.
    body = """
        say("ready")
        threading.Event().wait()
    """
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
    with Program(body, before=A_THREAD_BEFORE, block=block) as program:
        program.expect("ready")
        program.send(signal.SIGTERM)
        program.ended(-signal.SIGTERM)


@both_loops
def test_threads_after_the_mask_are_no_hindrance(loop: str) -> None:
    threads = """
    for _ in range(4):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    """
    body = textwrap.dedent(threads) + UNTIL_TERM
    with Program(body, loop) as program:
        program.expect(["signalfd", ""])
        for _ in range(20):
            program.send(signal.SIGUSR1)
            assert program.next()[1].startswith(f"process {os.getpid()} ")
        program.send(signal.SIGTERM)
        assert program.next()[0] == "SIGTERM"
        program.ended()


def test_a_thread_before_and_a_loop_elsewhere_is_refused() -> None:
    body = """
        def elsewhere():
            try:
                Signals().start()
            except RuntimeError as error:
                say(type(error).__name__, str(error))
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    """
    with Program(body, before=A_THREAD_BEFORE) as program:
        kind, text = program.next()
        assert kind == "UsageError"
        assert "start them in the main thread, where handlers run" in text
        program.ended()


def test_handlers_and_a_loop_elsewhere_are_refused() -> None:
    body = """
        def elsewhere():
            try:
                Signals().start()
            except RuntimeError as error:
                say(type(error).__name__, str(error))
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        try:
            thread = threading.Thread(target=block_signals)
            thread.start()
            thread.join()
        finally:
            say(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    """
    with Program(body, block="") as program:
        kind, text = program.next()
        assert kind == "UsageError"
        assert "call block_signals there, first of all" in text
        program.expect([])
        program.ended()
        assert "UsageError" in program.errors()


# -- pitfall: equal signals that wait are one ----------------------------------------------------


def test_pitfall_equal_signals_that_wait_are_joined_so_one_means_at_least_one() -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe("USR1") as channel:
                first = await channel.get()
                await asyncio.sleep(0.3)
                more = []
                channel.close()
                async for note in channel:
                    more.append(note.name)
                say(first.name, len(more))
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGUSR1)
        run(main)
    """
    with Program(body) as program:
        program.expect(["SIGUSR1", 0])
        program.ended()


def test_real_time_signals_are_counted() -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe(signal.SIGRTMIN, bound=200) as channel:
                for _ in range(100):
                    os.kill(os.getpid(), signal.SIGRTMIN)
                names = [(await channel.get()).name for _ in range(100)]
                say(len(names), names[0], channel.joined)
        run(main)
    """
    block = "block_signals([signal.SIGRTMIN])"
    with Program(body, block=block) as program:
        program.expect([100, "SIGRTMIN", 0])
        program.ended()


@ways
def test_none_is_lost_between_two_reads(way: str) -> None:
    # One after the other, each sent when the one before was heard: exactly as many as were sent.
    with Program(UNTIL_TERM, before=WAYS[way]) as program:
        program.next()
        for _ in range(200):
            program.send(signal.SIGUSR1)
            assert program.next()[0] == "SIGUSR1"
        program.send(signal.SIGTERM)
        assert program.next()[0] == "SIGTERM"
        program.expect("over")


# -- pitfall: the kernel has an order of its own -------------------------------------------------


@both_loops
@ways
def test_pitfall_signals_that_wait_come_by_priority_not_by_number(way: str, loop: str) -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe() as channel:
                say("stuck")
                spin(0.5)
                say([(await channel.get()).name for _ in range(4)])
        run(main)
    """
    with Program(body, loop, before=WAYS[way]) as program:
        program.expect("stuck")
        program.send(signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
        names = program.next()
        assert set(names[:2]) == {"SIGINT", "SIGTERM"}
        assert names[2:] == ["SIGHUP", "SIGUSR1"]
        program.ended()


@both_loops
def test_signals_that_came_before_anybody_read_wait_for_the_first_who_does(loop: str) -> None:
    body = """
        say("starting")
        while not {signal.SIGHUP, signal.SIGTERM} <= signal.sigpending():
            time.sleep(0.01)
        async def main():
            with Signals() as signals:
                await asyncio.sleep(0.1)
                with signals.subscribe("USR1"):
                    pass
                with signals.subscribe("TERM", "HUP") as channel:
                    say([(await channel.get()).name for _ in range(2)])
        run(main)
    """
    with Program(body, loop) as program:
        program.expect("starting")
        program.send(signal.SIGHUP, signal.SIGTERM)
        program.expect(["SIGTERM", "SIGHUP"])
        program.ended()


# -- pitfall: who the sender is ------------------------------------------------------------------

IN_A_CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
if os.geteuid() != 0:
    IN_A_CONTAINER.insert(1, "--map-root-user")
needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux"
    or subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True, check=False).returncode != 0,
    reason="no pid namespace may be made here",
)


@needs_namespaces
@both_loops
def test_pitfall_a_sender_outside_the_container_has_no_pid(loop: str) -> None:
    with Program(UNTIL_TERM, loop, wrap=IN_A_CONTAINER) as program:
        program.expect(["signalfd", ""])
        os.kill(inside(program.pid), signal.SIGTERM)
        program.expect(["SIGTERM", "somebody outside the container (pid 0)"], "over")
        program.ended()


def test_pitfall_a_sender_that_is_gone_is_known_by_its_number_only() -> None:
    body = """
        sender = os.posix_spawnp("kill", ["kill", "-TERM", str(os.getpid())], os.environ)
        os.waitpid(sender, 0)
        async def main():
            with Signals() as signals, signals.subscribe("TERM") as channel:
                note = await channel.get()
                say(note.sender == f"process {sender} of user {os.getuid()}", note.process)
        run(main)
    """
    with Program(body) as program:
        program.expect([True, ""])
        program.ended()


def test_the_kernel_as_sender() -> None:
    # A timer of the process: nobody has sent it.
    body = """
        async def main():
            with Signals() as signals, signals.subscribe(signal.SIGALRM) as channel:
                signal.alarm(1)
                note = await channel.get()
                say(note.sender, note.code)
        run(main)
    """
    with Program(body, block="block_signals([signal.SIGALRM])") as program:
        program.expect(["the kernel", "SI_KERNEL"])
        program.ended()


# -- pitfall: process 1 has no default actions ---------------------------------------------------


@needs_namespaces
def test_pitfall_process_1_ignores_a_signal_that_has_no_handler() -> None:
    body = """
        say(os.getpid())
        while True:
            time.sleep(0.05)
            say("still here")
    """
    with Program(body, block="", wrap=IN_A_CONTAINER) as program:
        program.expect(1)
        os.kill(inside(program.pid), signal.SIGTERM)
        for _ in range(5):
            program.expect("still here")


@needs_namespaces
@pytest.mark.parametrize("block", [BLOCK, ""])
def test_process_1_takes_its_signals(block: str) -> None:
    with Program(UNTIL_TERM, block=block, wrap=IN_A_CONTAINER) as program:
        assert program.next()[0] == ("signalfd" if block else "handlers")
        os.kill(inside(program.pid), signal.SIGTERM)
        assert program.next()[0] == "SIGTERM"
        program.expect("over")
        program.ended()


# -- pitfall: signals that were ignored when the process began -----------------------------------


@pytest.mark.parametrize("block", [BLOCK, ""])
def test_pitfall_nohup_is_respected(block: str) -> None:
    with Program(UNTIL_TERM, block=block, wrap=["nohup"]) as program:
        program.next()
        program.send(signal.SIGHUP, signal.SIGUSR1)
        assert program.next()[0] == "SIGUSR1"
        program.send(signal.SIGTERM)
        assert program.next()[0] == "SIGTERM"
        program.expect("over")
        program.ended()


@pytest.mark.parametrize("block", [BLOCK, ""])
def test_pitfall_int_and_quit_ignored_by_a_shell_are_taken_all_the_same(block: str) -> None:
    body = """
        say(os.getpid())
        say(int_was is signal.SIG_IGN and quit_was is signal.SIG_IGN)
        install_quit()
        async def main():
            with Signals() as signals, signals.subscribe("INT") as channel:
                say("ready")
                say((await channel.get()).name)
                say("again")
                await asyncio.sleep(60)
        run(main)
    """
    before = "int_was, quit_was = map(signal.getsignal, (signal.SIGINT, signal.SIGQUIT))"
    with Program(body, before=before, block=block, wrap=["sh", "-c", '"$0" "$@" & wait $!']) as p:
        pid = p.next()
        assert pid != p.pid
        p.expect(True, "ready")
        os.kill(pid, signal.SIGINT)
        p.expect("SIGINT", "again")
        os.kill(pid, signal.SIGQUIT)
        p.ended(131)


# -- pitfall: the runner of asyncio has a handler for INT ----------------------------------------


@both_loops
@pytest.mark.parametrize("block", [BLOCK, ""])
def test_pitfall_int_does_not_cancel_the_main_task(block: str, loop: str) -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe("INT") as channel:
                for _ in range(3):
                    say("ready")
                    await channel.get()
                await asyncio.sleep(0.05)
                say("not cancelled", asyncio.current_task().cancelling())
        run(main)
    """
    with Program(body, loop, block=block) as program:
        for _ in range(3):
            program.expect("ready")
            program.send(signal.SIGINT)
        program.expect(["not cancelled", 0])
        program.ended()


# -- pitfall: interpreters within the process ----------------------------------------------------


def test_pitfall_other_interpreters_are_refused_and_the_main_one_goes_on() -> None:
    other = """
    import importlib
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = importlib.import_module(name)
            break
        except ImportError:
            pass
    code = '''
    import os
    try:
        from holdfast.runtime.signals import block_signals
        block_signals()
    except RuntimeError as error:
        os.write(1, b'["%s"]' % type(error).__name__.encode() + bytes([10]))
    '''
    try:
        inner = interpreters.create("legacy")
    except TypeError:
        inner = interpreters.create(isolated=False)
    interpreters.run_string(inner, __import__("textwrap").dedent(code))
    interpreters.destroy(inner)
    """
    body = textwrap.dedent(other) + UNTIL_TERM
    with Program(body) as program:
        program.expect("UsageError", ["signalfd", ""])
        program.send(signal.SIGTERM)
        assert program.next()[0] == "SIGTERM"
        program.expect("over")
        program.ended()


# -- pitfall: library mode, where the server has handlers of its own -----------------------------


@both_loops
def test_pitfall_in_library_mode_the_server_gets_the_signal_when_it_may_stop(loop: str) -> None:
    body = """
        def of_the_server(number, frame):
            say("server", number)
        async def main():
            signal.signal(signal.SIGTERM, of_the_server)
            with Signals() as signals:
                say(signals.source, signals.why)
                with signals.subscribe("TERM") as channel:
                    say((await channel.get()).name)
                    signals.pass_on("TERM")
                    say((await channel.get()).name)
                    signals.pass_on("TERM")
            say(signal.getsignal(signal.SIGTERM) is of_the_server)
        run(main)
    """
    with Program(body, loop, block="") as program:
        program.expect(["handlers", "block_signals was not called"])
        for _ in range(2):
            program.send(signal.SIGTERM)
            program.expect("SIGTERM", ["server", signal.SIGTERM])
        program.expect(True)
        program.ended()


@pytest.mark.parametrize("block", [BLOCK, ""])
def test_passing_on_to_the_default_action(block: str) -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe("TERM") as channel:
                say("ready")
                await channel.get()
                signals.pass_on("TERM")
                await asyncio.sleep(60)
        run(main)
    """
    with Program(body, block=block) as program:
        program.expect("ready")
        program.send(signal.SIGTERM)
        program.ended(-signal.SIGTERM)


@both_loops
def test_handlers_that_a_server_installs_never_run_while_signals_are_read(loop: str) -> None:
    body = """
        async def main():
            loop = asyncio.get_running_loop()
            with Signals() as signals, signals.subscribe("TERM", "INT") as channel:
                signal.signal(signal.SIGTERM, lambda *_: say("handler"))
                loop.add_signal_handler(signal.SIGINT, say, "loop handler")
                say("ready")
                say(sorted([(await channel.get()).name, (await channel.get()).name]))
                await asyncio.sleep(0.05)
                loop.remove_signal_handler(signal.SIGINT)
        run(main)
    """
    with Program(body, loop) as program:
        program.expect("ready")
        program.send(signal.SIGTERM, signal.SIGINT)
        program.expect(["SIGINT", "SIGTERM"])
        program.ended()


# -- pitfall: systems that can do less -----------------------------------------------------------


@both_loops
def test_pitfall_a_system_that_can_block_nothing_uses_handlers(loop: str) -> None:
    before = f"{NOTHING_TO_READ_WITH}\n    del signal.pthread_sigmask\n"
    with Program(UNTIL_TERM, loop, before=before) as program:
        source, why = program.next()
        assert source == "handlers"
        assert why
        program.send(signal.SIGUSR1)
        program.expect(["SIGUSR1", "unknown (a handler is not told)"])
        program.send(signal.SIGTERM)
        assert program.next()[0] == "SIGTERM"
        program.expect("over")
        program.ended()


# -- the loop and the threads --------------------------------------------------------------------


@both_loops
def test_a_signal_is_told_at_once_while_the_loop_is_stuck(loop: str) -> None:
    body = """
        async def main():
            with Signals(tell=lambda note: say("told", note.name)) as signals:
                with signals.subscribe("TERM") as channel:
                    say("stuck")
                    while not go_on.is_set():
                        pass
                    say("channel", (await channel.get()).name)
        go_on = threading.Event()
        threading.Timer(1.5, go_on.set).start()
        run(main)
    """
    with Program(body, loop) as program:
        program.expect("stuck")
        program.send(signal.SIGTERM)
        program.expect(["told", "SIGTERM"], ["channel", "SIGTERM"])
        program.ended()


def test_an_error_in_tell_is_shown_and_changes_nothing() -> None:
    body = """
        def tell(note):
            raise ValueError("of tell")
        async def main():
            with Signals(tell=tell) as signals, signals.subscribe("TERM") as channel:
                say("ready")
                say((await channel.get()).name)
        run(main)
    """
    with Program(body) as program:
        program.expect("ready")
        program.send(signal.SIGTERM)
        program.expect("SIGTERM")
        program.ended()
        assert "ValueError: of tell" in program.errors()


@both_loops
def test_a_loop_outside_the_main_thread(loop: str) -> None:
    elsewhere = "thread = threading.Thread(target=run, args=[main])\nthread.start()\nthread.join()"
    body = UNTIL_TERM.replace("run(main)", elsewhere)
    with Program(body, loop) as program:
        program.expect(["signalfd", ""])
        program.send(signal.SIGUSR1)
        assert program.next()[0] == "SIGUSR1"
        program.send(signal.SIGTERM)
        assert program.next()[0] == "SIGTERM"
        program.expect("over")
        program.ended()


def test_several_consumers_each_with_its_own_set_on_several_loops() -> None:
    body = """
        def other(signals):
            async def listen():
                with signals.subscribe("TERM") as channel:
                    say("other ready")
                    other_heard.append((await channel.get()).name)
            asyncio.run(listen())
        other_heard = []
        async def main():
            with Signals() as signals:
                thread = threading.Thread(target=other, args=[signals])
                thread.start()
                with signals.subscribe("TERM") as stops, signals.subscribe("HUP", "TERM") as all_:
                    with signals.subscribe("HUP") as reloads:
                        say("ready")
                        say((await reloads.get()).name, (await all_.get()).name)
                    say((await stops.get()).name, (await all_.get()).name)
                await asyncio.to_thread(thread.join)
                say(other_heard)
        run(main)
    """
    with Program(body) as program:
        assert {program.next(), program.next()} == {"ready", "other ready"}
        program.send(signal.SIGHUP)
        program.expect(["SIGHUP", "SIGHUP"])
        program.send(signal.SIGTERM)
        program.expect(["SIGTERM", "SIGTERM"], ["SIGTERM"])
        program.ended()


def test_a_reader_whose_descriptors_were_closed_reads_on() -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe("TERM", "HUP") as channel:
                say(signals.source)
                for name in os.listdir("/proc/self/fd"):
                    if "signalfd" in where(name):
                        os.close(int(name))
                say("closed")
                say((await channel.get()).name)
                say(signals.source)
                say((await channel.get()).name)
        def where(n):
            try:
                return os.readlink(f"/proc/self/fd/{n}")
            except OSError:
                return ""
        run(main)
    """
    with Program(body) as program:
        program.expect("signalfd", "closed")
        program.send(signal.SIGHUP)
        program.expect("SIGHUP", "sigwaitinfo")
        program.send(signal.SIGTERM)
        program.expect("SIGTERM")
        program.ended()
        assert "Bad file descriptor" in program.errors()


# -- the end -------------------------------------------------------------------------------------


@ways
def test_closing_puts_mask_handlers_and_calls_back(way: str) -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe() as channel:
                say("ready")
                await channel.get()
            say(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
            say([signal.getsignal(n) == old for n, old in handlers_before.items()])
            say(subprocess._fork_exec is fork_exec_before, os.system is system_before)
            say(threading.active_count())
            say([n for n in os.listdir("/proc/self/fd") if "signalfd" in where(n)])
        def where(n):
            try:
                return os.readlink(f"/proc/self/fd/{n}")
            except OSError:
                return ""
        run(main)
        say("ended")
        signal.pause()
    """
    before = f"""{WAYS[way]}
    import subprocess
    handlers_before = {{n: signal.getsignal(n) for n in (1, 2, 10, 15)}}
    fork_exec_before, system_before = subprocess._fork_exec, os.system
    """
    with Program(body, before=before) as program:
        program.expect("ready")
        program.send(signal.SIGUSR1)
        program.expect([], [True] * 4, [True, True], 1, [], "ended")
        program.send(signal.SIGTERM)
        program.ended(-signal.SIGTERM)


def test_closing_without_restoring_keeps_the_exit_code() -> None:
    body = """
        async def main():
            signals = Signals()
            signals.start()
            with signals.subscribe("TERM") as channel:
                say("ready")
                await channel.get()
            signals.close(restore=False)
            say("closed")
            sys.stderr.write(str(signal.SIGTERM in signal.sigpending()))
            while signal.SIGTERM not in signal.sigpending():
                time.sleep(0.01)
        run(main)
        sys.exit(7)
    """
    with Program(body) as program:
        program.expect("ready")
        program.send(signal.SIGTERM)
        program.expect("closed")
        program.send(signal.SIGTERM)
        program.ended(7)


def test_one_reader_and_each_started_once() -> None:
    body = """
        async def main():
            with Signals() as signals:
                for wrong in (Signals().start, signals.start,
                              lambda: signals.subscribe("nothing"),
                              lambda: signals.subscribe("KILL"),
                              lambda: signals.subscribe("QUIT")):
                    try:
                        wrong()
                    except RuntimeError as error:
                        say(str(error))
            signals.close()
        run(main)
        with Signals() as again:
            say(again.source)
            try:
                again.subscribe("TERM")
            except RuntimeError as error:
                say(str(error))
    """
    with Program(body) as program:
        program.expect(
            "one reader for a process: subscribe to the one that there is",
            "these signals were started before",
            "'nothing' is not a signal of this system",
            "SIGKILL cannot be taken by any process",
            "SIGQUIT dumps and exits: see install_quit",
            "handlers",
            "subscribe on the loop that reads the channel",
        )
        program.ended()
