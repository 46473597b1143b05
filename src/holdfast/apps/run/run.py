"""`holdfast run`, all of it together."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast._version import __version__
from holdfast.adapters.uvloop import loop_factory
from holdfast.apps.run.problem import RunError
from holdfast.apps.run.settings import read_settings, terms_of
from holdfast.apps.run.target import load_host
from holdfast.domain.instant import format_duration
from holdfast.domain.lifecycle.history import Outcome
from holdfast.domain.lifecycle.meaning import Meaning, Meanings, meanings
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.runtime.lifecycle import ExitCode, FileReader, Host, HostTerms, LogReader
from holdfast.runtime.lifecycle.stopguard import StopGuard
from holdfast.runtime.memory import StopMemory
from holdfast.runtime.reaper import Reaper, is_first
from holdfast.runtime.signals import SignalNote, Signals, block_signals, install_quit

__all__ = ["Program", "run"]

_SIGNALLED: Final = 128


@dataclass(frozen=True, slots=True)
class Program:
    """What `holdfast run` was asked to do.

    Attributes:
        target: the host, a factory of it, or a coroutine function; `MODULE:ATTR`.
        service: name of the service, over what the file says; empty for what that says.
        config: the settings file that was named; `None` for the default one.
        timeline: file to which the records are appended; `None` for none.
    """

    target: str
    service: str = ""
    config: Path | None = None
    timeline: Path | None = None


def run(program: Program) -> int:
    """Run until the work is done or a signal comes; the exit code.

    Raises:
        RunError: it cannot run.
        ConfigError: what the components need of one another cannot be.
    """
    stop, service = read_settings(program.config, Path.cwd())
    meaning = meanings(quit=stop.quit)
    # Before the program is imported: threads that it starts would take the signals else.
    block_signals(meanings=meaning)
    door = _Door(meaning)
    reaper = Reaper() if is_first() else None
    if reaper is not None:
        reaper.watch()
    quit_means = Meaning.STOP if stop.quit == "stop" else Meaning.DUMP_AND_EXIT
    dump = install_quit(quit_means, before=door.quitting)
    with Signals(meaning, door.heard) as signals:
        try:
            host = _loaded(program, program.service or service)
            code = _live(host, program, stop, signals, door, reaper)
            signals.close(restore=False)  # what comes now must not change the exit code
        finally:
            if dump is not None:
                dump.close()
    return code


def _loaded(program: Program, service: str) -> Host:
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    host = load_host(program.target, service)
    _speak()
    host.journal.read_by(LogReader())
    if program.timeline is not None:
        try:
            host.journal.read_by(FileReader(program.timeline))
        except OSError as error:
            text = f"the timeline {program.timeline} cannot be written: {error.strerror}"
            raise RunError(text) from None
    return host


def _live(
    host: Host,
    program: Program,
    stop: StopSettings,
    signals: Signals,
    door: _Door,
    reaper: Reaper | None,
) -> int:
    memory = StopMemory.of(program.service or host.name or program.target, stop.memory)
    terms, told = terms_of(stop, memory.recall().failures)
    if host.terms == HostTerms():  # else it was given times of its own
        host.terms = terms

    drain, cleanup = host.terms.drain, host.terms.cleanup
    guard = StopGuard(drain + cleanup, cleanup, stop.grace)

    async def begun() -> None:
        guard.begun()
        await asyncio.to_thread(memory.begun, told)

    host.on_stop(begun, name="remember the stop")

    async def live() -> ExitCode:
        guard.watch(host)
        door.open(guard)
        if reaper is not None:
            reaper.start()
        print(_block(program, host), file=sys.stderr, flush=True)
        try:
            code = await host.run(signals)
        finally:
            if reaper is not None:
                reaper.stop()
        guard.stopped(code)
        return code

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        code = runner.run(live())
        memory.ended(_outcome(host, code))
    return int(code)


class _Door:
    """What signals do while nobody listens to them yet, and while the loop is stuck."""

    def __init__(self, meaning: Meanings) -> None:
        self._meaning = meaning
        self._guard: StopGuard | None = None

    def open(self, guard: StopGuard) -> None:
        """From now on the host listens."""
        self._guard = guard

    def heard(self, note: SignalNote) -> None:
        """One signal; in the thread that has read it."""
        if self._meaning.get(note.name) is not Meaning.STOP:
            return
        if self._guard is None:  # the program is loaded: nothing has started
            os._exit(_SIGNALLED + note.number)
        self._guard.told(note)

    def quitting(self, note: SignalNote) -> None:
        """QUIT ends the process at once."""
        if self._guard is not None:
            self._guard.quitting(note)


def _outcome(host: Host, code: ExitCode) -> Outcome:
    if code is ExitCode.FORCED:
        return Outcome.FORCED
    cut = any(record.data.get("cut") for record in host.journal.records[-1:])
    return Outcome.TIMED_OUT if cut or code is ExitCode.TIMED_OUT else Outcome.CLEAN


class _Plain(logging.StreamHandler):  # type: ignore[type-arg]
    """Says what happens where the program has not said itself where its log goes."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def _speak() -> None:
    log = logging.getLogger("holdfast")
    if not log.handlers:
        handler = _Plain()
        handler.setFormatter(logging.Formatter("%(levelname)-7s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def _block(program: Program, host: Host) -> str:
    """What runs, and how long its stop may take."""
    terms = host.terms
    lines = [
        f"holdfast {__version__} runs {program.target}",
        f"  process     {os.getpid()}",
        f"  stop        {format_duration(terms.drain)} for the work, "
        f"{format_duration(terms.cleanup)} for clean-up",
    ]
    if program.timeline is not None:
        lines.append(f"  timeline    holdfast timeline {program.timeline}")
    return "\n".join(lines)
