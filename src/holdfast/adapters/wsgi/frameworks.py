"""What frameworks tell of errors that they have made a page of.

Flask and Django turn an error of a view into a response with a 500, and hand on the response alone.
Both announce the error by a signal of theirs before. A framework is not imported here: its signal
is looked up where the application has imported it. Of others (Bottle, Pyramid) the error shows in
`start_response`, which they call with it or inside their `except` block.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from holdfast.adapters.wsgi.exchange import HERE
from holdfast.domain.cause import Cause
from holdfast.domain.wire.ending import ended_by

__all__ = ["cause_behind", "listen"]

_SIGNAL: Final = "got_request_exception"
_MODULES: Final = ("flask.signals", "django.core.signals")
_DEEPEST: Final = 8


def listen() -> None:
    """Hear of errors from the frameworks that are imported. May be called again."""
    for name in _MODULES:
        signal: Any = getattr(sys.modules.get(name), _SIGNAL, None)
        if signal is not None:
            signal.connect(_failed)


def _failed(sender: object, **told: Any) -> None:
    exchange = HERE.get()
    if exchange is not None:
        # Flask hands the error over, Django calls inside its except block.
        exchange.noted = cause_behind(told.get("exception") or sys.exc_info()[1])


def cause_behind(error: BaseException | None) -> Cause | None:
    """The cause in an error of ours, or in the one that it was raised from.

    Django's database layer raises an error of its own from that of the driver.
    """
    for _ in range(_DEEPEST):
        if error is None:
            return None
        cause = ended_by(error)
        if cause is not None:
            return cause
        error = error.__cause__
    return None
