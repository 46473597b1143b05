"""The records of a stop as a picture: the model of it, which has no clock, screen or file.

    placing   which records belong together, on one axis
    lanes     the lives of the components
    reading   from the records of a run to its timeline
    verdict   how it went, in one sentence
    model     what comes out

What belongs here: what happened, and how it is to be taken. What does not: how it looks, which is
`apps.timeline`.
"""

from __future__ import annotations

from holdfast.domain.lifecycle.timeline.model import (
    Fate,
    Lane,
    Mark,
    Point,
    Span,
    Story,
    Timeline,
    Tone,
)
from holdfast.domain.lifecycle.timeline.reading import timelines
from holdfast.domain.lifecycle.timeline.verdict import sender

__all__ = [
    "Fate",
    "Lane",
    "Mark",
    "Point",
    "Span",
    "Story",
    "Timeline",
    "Tone",
    "sender",
    "timelines",
]
