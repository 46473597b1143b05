"""What a fleet decides and tells, word for word: an event after each `>`, below it what follows.

A process gets the number 100 and its ticket, and is there at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.domain.lifecycle.fleet import (
    Decision,
    Died,
    Dump,
    DumpAsked,
    Event,
    Exit,
    Fleet,
    ForceAsked,
    Kill,
    NotStarted,
    Ready,
    Report,
    Resize,
    Retire,
    RollAsked,
    Spawn,
    Started,
    StopAsked,
    Tick,
    opening,
    wake,
)

STORIES = (Path(__file__).parent / "fleet_stories.txt").read_text().split("\n# ")[1:]


def line(decision: Decision) -> str:
    match decision:
        case Spawn(ticket, slot, generation):
            return f"spawn {ticket} for {slot}/{generation}"
        case Retire(pid, seconds, final, force):
            return f"retire {pid} in {seconds:g}{' final' * final}{' force' * force}"
        case Kill(pid):
            return f"kill {pid}"
        case Dump(pid):
            return f"dump {pid}"
        case Exit(code):
            return f"exit {code}"
        case Report(kind, pid, slot, generation, detail, code):
            who = f" {pid} {slot}/{generation}" if pid else f" fleet {slot}/{generation}"
            told = "" if code is None else f" [{code}]"
            return f"{kind}{who}{': ' * bool(detail)}{detail}{told}"


class Teller:
    def __init__(self, wanted: int) -> None:
        self.now = 50.0
        self.state = opening(wanted)
        self.refuse = False
        self.lines: list[str] = []

    def tell(self, event: Event) -> None:
        self.state, decided = Fleet().step(self.state, event, self.now)
        for decision in decided:
            self.lines.append(line(decision))
            if isinstance(decision, Spawn):
                self.spawned(decision.ticket)

    def spawned(self, ticket: int) -> None:
        if self.refuse:
            self.tell(NotStarted(ticket, "no memory"))
        else:
            self.tell(Started(ticket, 100 + ticket, 12.0))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := wake(self.state)) <= end:
            self.now = at
            self.tell(Tick())
        self.now = end

    def hear(self, text: str) -> None:
        match text.split():
            case ["wait", seconds]:
                self.wait(float(seconds))
            case ["ready", pid]:
                self.tell(Ready(int(pid)))
            case ["die", pid, code]:
                self.tell(Died(int(pid), None if code == "?" else int(code)))
            case ["resize", by]:
                self.tell(Resize(int(by)))
            case ["no", "memory"]:
                self.refuse = True
            case [word]:
                events = {
                    "start": Tick(),
                    "roll": RollAsked(),
                    "stop": StopAsked("TERM"),
                    "force": ForceAsked("INT"),
                    "dump": DumpAsked(),
                }
                self.tell(events[word])
            case _:
                raise AssertionError(text)


def told(story: str) -> str:
    title, *lines = story.strip().splitlines()
    teller = Teller(int(title.split()[0]))
    for text in lines:
        if text.startswith("> "):
            teller.lines.append(text)
            teller.hear(text[2:])
    return "\n".join([title, *teller.lines])


@pytest.mark.parametrize("story", STORIES, ids=[story.partition("\n")[0] for story in STORIES])
def test_story(story: str) -> None:
    assert told(story) == story.strip()


def test_there_are_stories() -> None:
    assert len(STORIES) == 10
