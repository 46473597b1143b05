"""How a stop went, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from holdfast.domain.instant import format_duration
from holdfast.domain.lifecycle.timeline.model import Fate, Mark, Story, Tone

__all__ = ["judge", "judge_all", "sender"]

_CLEAN: Final = 0
_CANNOT_RUN: Final = 2
_FAILED_TO_START: Final = 3
_TIMED_OUT: Final = 4
_FORCED: Final = 5
_COMPONENT_DIED: Final = 6
_SIGNALLED: Final = 128
_HIGHEST: Final = 64
_MOST: Final = 4
_WORSE: Final = (Tone.PLAIN, Tone.GOOD, Tone.WARN, Tone.BAD)
_NAMES: Final = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    15: "SIGTERM",
}


def judge(story: Story) -> dict[str, Any]:
    """`verdict` and `tone` of a story."""
    head, tone = _head(story)
    parts = _parts(story)
    text = f"{head}: {'; '.join(parts)}" if parts else head
    return {"verdict": text, "tone": tone}


def judge_all(stories: Sequence[Story]) -> tuple[str, Tone]:
    """The sentence about all processes of a run together, and how it is to be taken."""
    if len(stories) == 1:
        return stories[0].verdict, stories[0].tone
    tone = max((story.tone for story in stories), key=_WORSE.index)
    first = stories[0]
    boss = first if first.role == "supervisor" else None
    rest = stories[1:] if boss else stories
    noun = ("worker", "workers") if boss else ("process", "processes")
    parts = _ends_of(rest, noun)
    if boss is not None and boss.stop is not None:
        _, colon, told = boss.verdict.partition(": ")
        head = _head(boss)[0]
        return f"{head}: {'; '.join([*([told] if colon else []), *parts])}", tone
    stopped = [story for story in rest if story.stop is not None]
    if boss is not None and boss.signals:
        mark = boss.signals[-1]
        parts.insert(0, f"{mark.subject} {sender(mark)}".strip())
    head = f"{len(stopped)} of {len(rest)} {noun[len(rest) != 1]} stopped"
    return f"{head}: {'; '.join(parts)}" if parts else head, tone


def _ends_of(stories: Sequence[Story], noun: tuple[str, str]) -> list[str]:
    parts: list[str] = []
    stopped = [story for story in stories if story.stop is not None]
    fine = sum(story.tone is Tone.GOOD for story in stopped)
    if fine:
        parts.append(f"{fine} {noun[fine != 1]} ended clean")
    finished = sum(story.finished or 0 for story in stopped)
    cut = sum(story.cut for story in stopped)
    if finished or cut:
        parts.append(f"{finished} requests finished, {cut or 'none'} cut")
    others = [story for story in stories if story.tone in (Tone.WARN, Tone.BAD)]
    for story in others[:_MOST]:
        head = _head(story)[0]
        held = f", with {_count(story.unknown, story)} in flight" if story.unknown else ""
        parts.append(f"{noun[0]} {story.pid}: {head[:1].lower()}{head[1:]}{held}")
    if len(others) > _MOST:
        parts.append(f"{len(others) - _MOST} more did not end clean")
    return parts


def sender(mark: Mark) -> str:
    """Who sent a signal, as far as the kernel told: `by process 1 (kubelet)`; may be empty."""
    told = mark.data.get("sender")
    if isinstance(told, str) and told:
        return "" if told.startswith("unknown") else f"by {told}"
    pid = mark.data.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool):
        return ""
    if pid == 0:
        return "by somebody outside the container"
    name = mark.data.get("process")
    return f"by process {pid}" + (f" ({name})" if isinstance(name, str) and name else "")


def _head(story: Story) -> tuple[str, Tone]:
    took = "" if story.took is None else f" in {format_duration(story.took)}"
    code = story.exit_code
    if code is None:
        return _without_code(story, took)
    if code == _CLEAN:
        if story.cut:
            return f"Stop{took}, not without loss", Tone.BAD
        return f"Clean stop{took}", Tone.WARN if _blemished(story) else Tone.GOOD
    if code == _CANNOT_RUN:
        return "Could not run", Tone.BAD
    if code == _FAILED_TO_START:
        return f"Failed to start, after {format_duration(story.ended - story.began)}", Tone.BAD
    if code == _TIMED_OUT:
        # The supervisor's own records do not name what its workers cut.
        at_drain = story.cuts or story.cut or story.role == "supervisor"
        where = "at the drain deadline" if at_drain else "its clean-up ran out of time"
        return f"Stop{took}, {where}", Tone.BAD
    if code == _FORCED:
        return f"Forced stop{took}", Tone.BAD
    if code == _COMPONENT_DIED:
        return f"Stop{took}, because a component died", Tone.BAD
    number = -code if code < 0 else code - _SIGNALLED
    if 0 < number <= _HIGHEST:
        name = _NAMES.get(number, f"signal {number}")
        if name == "SIGQUIT" and story.complete:
            return "Left at once, after a dump", Tone.BAD
        return f"Killed by {name}{_while(story)}", Tone.BAD
    return f"Ended with exit code {code}{took}", Tone.BAD


def _without_code(story: Story, took: str) -> tuple[str, Tone]:
    if story.complete:
        return f"Stopped{took}", Tone.WARN if _blemished(story) else Tone.GOOD
    if story.took is None:
        return "Not told to stop, as far as the records go", Tone.PLAIN
    after = format_duration(story.took)
    return f"Killed, or still at it, {after} into the stop{_while(story)}", Tone.BAD


def _while(story: Story) -> str:
    return f", while {story.phases[-1].name}" if story.phases and story.phases[-1].name else ""


def _blemished(story: Story) -> bool:
    return bool(
        story.cut
        or any(lane.unanswered or lane.fate not in (Fate.STOPPED, Fate.UP) for lane in story.lanes)
        or any(hook.kind == "hook.failed" for hook in story.hooks)
    )


def _parts(story: Story) -> list[str]:
    reason = _why(story)
    parts = [reason, _requests(story)]
    for fate, words in (
        (Fate.DIED, "died"),
        (Fate.FAILED, "failed"),
        (Fate.FORCED, "was forced"),
        (Fate.LOST, "had not stopped"),
    ):
        names = [
            lane.name
            for lane in story.lanes
            if lane.fate is fate and not lane.unanswered
            # What the reason says is not said again.
            if not reason.startswith(_components([lane.name], words))
        ]
        parts.append(_components(names, words))
    silent = [lane for lane in story.lanes if lane.unanswered]
    forced = [lane.name for lane in silent if lane.fate is Fate.FORCED]
    others = [lane.name for lane in silent if lane.fate is not Fate.FORCED]
    parts.append(_components(forced, "did not answer and was forced"))
    parts.append(_components(others, "did not answer"))
    failed = [hook.subject for hook in story.hooks if hook.kind == "hook.failed"]
    if failed:
        parts.append(f"{'hook' if len(failed) == 1 else 'hooks'} {_listed(failed)} failed")
    return [part for part in parts if part]


def _why(story: Story) -> str:
    words = [f"{mark.subject} {sender(mark)}".strip() for mark in story.signals if _ends(mark)]
    if words:
        # One who presses a key twice is named once, with the word that says so.
        return words[0] if len(words) == 1 else f"{words[0]}, then {words[1]}"
    for mark in story.marks:
        if mark.kind == "stop.begun" and (mark.cause or mark.text):
            return mark.cause or mark.text
    return ""


def _ends(mark: Mark) -> bool:
    # What only reads a file again does not end anything.
    meaning = mark.data.get("meaning")
    if isinstance(meaning, str) and meaning:
        return meaning not in ("reload", "dump", "ignore")
    return mark.subject in ("SIGTERM", "SIGINT", "SIGQUIT")


def _requests(story: Story) -> str:
    if story.unknown and not story.cut:
        return f"{_count(story.unknown, story)} {_were(story.unknown)} in flight at the last"
    if story.finished is None:
        return f"{_count(story.cut, story)} cut" if story.cut else ""
    cut = f"{story.cut} cut" if story.cut else "none cut"
    if story.finished == 0 and not story.cut:
        return "no request was in flight"
    return f"{_count(story.finished, story)} finished, {cut}"


def _count(number: int, story: Story) -> str:
    # Without a server there are no requests.
    one, many = ("request", "requests") if story.flight else ("piece of work", "pieces of work")
    return f"{number} {one if number == 1 else many}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _components(names: Sequence[str], words: str) -> str:
    if not names:
        return ""
    if len(names) == 1:
        return f"component {_listed(names)} {words}"
    return f"components {_listed(names)} {words.replace('was ', 'were ')}"


def _listed(names: Sequence[str]) -> str:
    shown = [f"'{name}'" for name in names[:3]]
    if len(names) > len(shown):
        return f"{', '.join(shown)} and {len(names) - len(shown)} more"
    return " and ".join(shown) if len(shown) < 3 else f"{shown[0]}, {shown[1]} and {shown[2]}"
