"""Processes that are started while signals are blocked: none inherits the mask."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.system.signalling import LOOPS, Program

pytestmark = pytest.mark.system

both_loops = pytest.mark.parametrize("loop", LOOPS)

BEFORE = """
    import multiprocessing, multiprocessing.util, os, signal, subprocess, time

    def masked(pid):
        with open(f"/proc/{pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields["SigBlk"], 16), int(fields["SigIgn"], 16) & (1 << 14)
"""
SLEEP = ["sleep", "60"]


def popen(words: str) -> str:
    return f"""
    process = subprocess.Popen({words})
    process.terminate()
    say(process.wait(20))
    """


def posix_spawn(call: str, program: str) -> str:
    return f"""
    pid = os.{call}("{program}", ["sleep", "60"], os.environ)
    os.kill(pid, signal.SIGTERM)
    say(-os.waitpid(pid, 0)[1])
    """


PLAIN = {
    "Popen": popen("['sleep', '60']"),
    "Popen in a new session": popen("['sleep', '60'], start_new_session=True"),
    "Popen with preexec_fn": popen("['sleep', '60'], preexec_fn=os.getpid"),
    "Popen by posix_spawn": popen("['/bin/sleep', '60'], close_fds=False"),
    "Popen without vfork": "subprocess._USE_VFORK = False" + popen("['sleep', '60']"),
    "a shell": popen("'exec sleep 60', shell=True"),
    "posix_spawn": posix_spawn("posix_spawn", "/bin/sleep"),
    "posix_spawnp": posix_spawn("posix_spawnp", "sleep"),
    "spawnvp": """
    pid = os.spawnvp(os.P_NOWAIT, "sleep", ["sleep", "60"])
    while masked(pid)[0]:
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    say(-os.waitpid(pid, 0)[1])
    """,
    "fork": """
    pid = os.fork()
    if not pid:
        time.sleep(60)
    os.kill(pid, signal.SIGTERM)
    say(-os.waitpid(pid, 0)[1])
    """,
    "forkpty": """
    pid, terminal = os.forkpty()
    if not pid:
        os.execvp("sleep", ["sleep", "60"])
    os.kill(pid, signal.SIGTERM)
    say(-os.waitpid(pid, 0)[1])
    """,
    "system": """
    say(-os.system("kill -TERM $$; exit 9"))
    """,
}
MULTIPROCESSING = """
    context = multiprocessing.get_context("{way}")
    process = context.Process(target=time.sleep, args=[60])
    process.start()
    while masked(process.pid)[0]:
        time.sleep(0.01)
    process.terminate()
    process.join(20)
    say(process.exitcode)
"""
WAYS = {
    **PLAIN,
    "multiprocessing spawn": MULTIPROCESSING.format(way="spawn"),
    "multiprocessing fork": MULTIPROCESSING.format(way="fork"),
    "multiprocessing forkserver": MULTIPROCESSING.format(way="forkserver"),
    "a pool of processes": """
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pid = pool.submit(os.getpid).result()
        say(-15 if masked(pid) == (0, 0) else masked(pid))
    """,
}
PLACES = {
    "in the main thread": "child()",
    "in another thread": "thread = threading.Thread(target=child); thread.start(); thread.join()",
}


def indented(text: str, by: str) -> str:
    return "\n".join(by + line.removeprefix("    ") for line in text.splitlines())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_pitfall_children_do_not_inherit_the_mask(way: str, place: str) -> None:
    body = f"""
def child():
{indented(WAYS[way], "    ")}
with Signals() as signals:
    say(signals.source)
    {PLACES[place]}
    say(signals.source, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())) != [])
"""
    with Program(body, before=BEFORE) as program:
        program.expect("signalfd", -signal.SIGTERM)
        program.expect(["signalfd", True])
        program.ended()


def test_children_of_threads_that_kept_the_mask_when_handlers_took_over() -> None:
    body = """
        begin = threading.Event()
        def child():
            begin.wait()
            process = subprocess.Popen(["sleep", "60"])
            process.terminate()
            say(process.wait(20))
            say(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
        thread = threading.Thread(target=child)
        thread.start()
        with Signals() as signals:
            say(signals.source)
            begin.set()
            thread.join()
    """
    before = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    """
    with Program(body, before=before) as program:
        program.expect("handlers", -signal.SIGTERM, [1, 2, 10, 15])
        program.ended()


@both_loops
def test_pitfall_children_of_the_loop_do_not_inherit_the_mask(loop: str) -> None:
    body = """
        async def main():
            with Signals() as signals, signals.subscribe() as channel:
                for start in (
                    lambda: asyncio.create_subprocess_exec("sleep", "60"),
                    lambda: asyncio.create_subprocess_shell("exec sleep 60"),
                ):
                    process = await start()
                    process.terminate()
                    say(await asyncio.wait_for(process.wait(), 20))
                os.kill(os.getpid(), signal.SIGTERM)
                note = await channel.get()
                say(note.name, note.pid == os.getpid())
        run(main)
    """
    with Program(body, loop) as program:
        program.expect(-signal.SIGTERM, -signal.SIGTERM, ["SIGTERM", True])
        program.ended()


def test_without_the_fence_a_child_does_not_end() -> None:
    # What the tests above would look like if nothing were done about it, and what helps then.
    body = """
        process = subprocess.Popen(["sleep", "60"])
        process.terminate()
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            say("it does not end")
        process.kill()
        process.wait()
        process = subprocess.Popen(["sleep", "60"], preexec_fn=child_setup)
        process.terminate()
        say(process.wait(20))
        with unblocked():
            process = subprocess.Popen(["sleep", "60"])
        process.terminate()
        say(process.wait(20))
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ, setsigmask=[])
        os.kill(pid, signal.SIGTERM)
        say(-os.waitpid(pid, 0)[1])
    """
    with Program(body, block="block_signals(children=False)") as program:
        program.expect("it does not end")
        program.expect(-signal.SIGTERM, -signal.SIGTERM, -signal.SIGTERM)
        program.ended()


def test_a_program_started_from_c_is_covered_by_unblocked() -> None:
    # Not by system(3): some shells clear their mask when they begin.
    body = """
        import ctypes
        libc = ctypes.CDLL(None)
        line, file = b"SigBlk:.0000000000000000", b"/proc/self/status"
        words = (ctypes.c_char_p * 5)(b"grep", b"-q", line, file, None)
        def run_from_c():
            pid = ctypes.c_int()
            assert libc.posix_spawnp(ctypes.byref(pid), b"grep", None, None, words, None) == 0
            return os.waitpid(pid.value, 0)[1]
        say(run_from_c() != 0)
        with unblocked():
            say(run_from_c())
    """
    with Program(body) as program:
        program.expect(True, 0)
        program.ended()


def test_a_program_that_replaces_this_one_does_not_inherit_the_mask() -> None:
    body = """
        try:
            os.execv("/does/not/exist", ["x"])
        except FileNotFoundError:
            say(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
        os.execvp("sleep", ["sleep", "60"])
    """
    with Program(body) as program:
        program.expect([1, 2, 10, 15])
        while True:
            with open(f"/proc/{program.pid}/comm") as comm:
                if comm.read() == "sleep\n":
                    break
        program.send(signal.SIGTERM)
        program.ended(-signal.SIGTERM)


def test_system_returns_what_it_returned_and_does_not_keep_signals_away() -> None:
    body = """
        async def main():
            with Signals(tell=lambda note: say(note.line())) as signals:
                say(os.system("exit 3"), os.system(b"true"))
                say("slow")
                say(os.system("sleep 1; exit 4"))
        run(main)
        say([signal.getsignal(n) for n in (2, 3)] == [signal.default_int_handler, 0])
    """
    with Program(body) as program:
        program.expect([3 << 8, 0], "slow")
        program.send(signal.SIGINT)
        assert program.next().startswith("SIGINT from process ")
        program.expect(4 << 8, True)
        program.ended()


def test_a_forked_child_is_nobodys_server_and_may_become_one() -> None:
    body = """
        def child():
            say([signal.getsignal(n) is signal.SIG_DFL for n in (1, 10, 15)],
                signal.getsignal(2) is signal.default_int_handler,
                sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
                subprocess._fork_exec.__module__)
            say([w for w in map(where, os.listdir("/proc/self/fd")) if "signalfd" in w])
            block_signals()
            async def serve():
                with Signals() as signals, signals.subscribe("TERM") as channel:
                    os.kill(os.getpid(), signal.SIGTERM)
                    note = await channel.get()
                    say(signals.source, note.name, note.pid == os.getpid())
            asyncio.run(serve())
        def where(n):
            try:
                return os.readlink(f"/proc/self/fd/{n}")
            except OSError:
                return ""
        with Signals() as signals:
            pid = os.fork()
            if not pid:
                child()
                os._exit(0)
            say("child", os.waitpid(pid, 0)[1])
            say(signals.source, len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    """
    with Program(body) as program:
        program.expect([[True] * 3, True, [], "_posixsubprocess"], [])
        program.expect(["signalfd", "SIGTERM", True], ["child", 0], ["signalfd", 4])
        program.ended()


# -- what starting processes does to the signals of this one -------------------------------------


@both_loops
def test_the_resource_tracker_unblocks_signals_and_none_is_lost(loop: str) -> None:
    body = """
        import multiprocessing
        async def main():
            with Signals() as signals, signals.subscribe() as channel:
                lock = multiprocessing.get_context("spawn").Lock()
                say(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
                os.kill(os.getpid(), signal.SIGTERM)
                say((await channel.get()).line())
                await asyncio.sleep(0)
                os.kill(os.getpid(), signal.SIGTERM)
                say((await channel.get()).pid == os.getpid())
        run(main)
    """
    with Program(body, loop) as program:
        program.expect(False)  # the tracker has taken it out of the mask
        program.expect("SIGTERM from unknown (a handler is not told)", True)
        program.ended()


def test_the_resource_tracker_before_the_signals_are_read() -> None:
    body = """
        import multiprocessing
        lock = multiprocessing.get_context("spawn").Lock()
        os.kill(os.getpid(), signal.SIGTERM)
        async def main():
            with Signals() as signals, signals.subscribe() as channel:
                say((await channel.get()).line())
                os.kill(os.getpid(), signal.SIGTERM)
                say((await channel.get()).pid == os.getpid())
        run(main)
    """
    with Program(body) as program:
        program.expect("SIGTERM from unknown (a handler is not told)", True)
        program.ended()


@both_loops
@pytest.mark.parametrize("place", ["loop", "threads", "both"])
def test_no_signal_is_lost_or_doubled_while_processes_are_started(place: str, loop: str) -> None:
    body = f"""
        busy = True
        def start():
            while busy:
                subprocess.run(["true"])
        async def start_on_loop():
            while busy:
                await (await asyncio.create_subprocess_exec("true")).wait()
        async def main():
            global busy
            with Signals() as signals, signals.subscribe() as channel:
                tasks = [asyncio.create_task(start_on_loop()) for _ in range({place != "threads"})]
                threads = [threading.Thread(target=start) for _ in range(2 * {place != "loop"})]
                for thread in threads:
                    thread.start()
                say("ready")
                async for note in channel:
                    say(note.name)
                    if note.name == "SIGTERM":
                        break
                busy = False
                for task in tasks:
                    await task
                for thread in threads:
                    await asyncio.to_thread(thread.join)
                channel.close()
                say([note.name async for note in channel])
        run(main)
    """
    with Program(body, loop) as program:
        program.expect("ready")
        for _ in range(150):
            program.send(signal.SIGUSR1)
            program.expect("SIGUSR1")
        program.send(signal.SIGTERM)
        program.expect("SIGTERM", [])
        program.ended()


@both_loops
def test_a_signal_that_another_thread_takes_wakes_the_loop(loop: str) -> None:
    body = """
        def take():
            with unblocked():
                os.kill(os.getpid(), signal.SIGTERM)
        async def main():
            with Signals() as signals, signals.subscribe() as channel:
                thread = threading.Timer(0.5, take)
                thread.start()  # nothing else will happen on this loop
                say((await channel.get()).line())
                thread.join()
        run(main)
    """
    with Program(body, loop) as program:
        program.expect("SIGTERM from unknown (a handler is not told)")
        program.ended()


def test_a_signal_without_a_handler_stays_blocked_rather_than_kill() -> None:
    # `remove_signal_handler` puts the default action in place of what was there before.
    body = """
        async def main():
            loop = asyncio.get_running_loop()
            with Signals() as signals, signals.subscribe() as channel:
                loop.add_signal_handler(signal.SIGTERM, print)
                loop.remove_signal_handler(signal.SIGTERM)
                say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
                for _ in range(50):
                    os.kill(os.getpid(), signal.SIGTERM)
                    subprocess.run(["true"])
                    say((await channel.get()).name)
        run(main)
    """
    with Program(body) as program:
        program.expect(True, *["SIGTERM"] * 50)
        program.ended()


@pytest.mark.skipif(sys.platform != "linux", reason="what a child has is read from /proc")
def test_what_a_child_has_is_what_the_process_had() -> None:
    # A mask that somebody else has set is left alone.
    body = """
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        grep = ["grep", "^Sig[BI]", "/proc/self/status"]
        for options in ({}, {"close_fds": False, "executable": "/bin/grep"}):
            out = subprocess.run(grep, stdout=subprocess.PIPE, text=True, **options).stdout
            found = [int(line.split()[1], 16) for line in out.splitlines()]
            say([mask & 0x7FFF_FFFF & ~(1 << 12 | 1 << 24) for mask in found])
    """
    with Program(body) as program:
        usr2 = 1 << signal.SIGUSR2 - 1
        program.expect([usr2, 0], [usr2, 0])
        program.ended()
