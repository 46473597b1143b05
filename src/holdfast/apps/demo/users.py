"""The load: when each user comes, how long it waits, what it gets.

Users come by chance, one independent of the other, and do not wait for those before them. The same
seed gives the same users with the same orders at the same moments.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from holdfast.apps.demo.http import Reply, ask
from holdfast.domain.cause import Cause
from holdfast.domain.instant import Duration, Instant
from holdfast.domain.wire.problem import parse_problem
from holdfast.runtime.clock import monotonic
from holdfast.runtime.tasks import tasks

__all__ = ["HASTY", "PATIENCE", "RATE", "Experience", "User", "Visits", "users_for"]

RATE: Final = 30.0
"""Users per second, on average."""
PATIENCE: Final[Duration] = 0.8
"""Seconds that a user waits before leaving."""
HASTY: Final[Duration] = 0.25
"""Seconds after which one user in eight closes the tab."""

_HASTY_SHARE: Final = 1 / 8
_SEED: Final = "holdfast demo"
_GIVE_UP_AT: Final = "x-demo-give-up-at"


@dataclass(frozen=True, slots=True)
class User:
    """One user.

    Attributes:
        number: of its order.
        comes: seconds after the beginning.
        patience: seconds that it waits.
    """

    number: int
    comes: Duration
    patience: Duration


@dataclass(frozen=True, slots=True)
class Experience:
    """What a user got.

    Attributes:
        user: who.
        took: seconds until the answer, or until leaving.
        status: of the answer; 0 when there was none.
        failed: why there was none, where the user did not simply leave.
        reply: the answer, where it was not 200.
        cause: what the answer says about its reason, where it says something.
    """

    user: User
    took: Duration
    status: int
    failed: str = ""
    reply: Reply | None = None
    cause: Cause | None = None


def _chance(what: str) -> float:
    # A digest: the same on every machine and Python, and it needs no state.
    digest = hashlib.blake2b(f"{_SEED} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def users_for(seconds: Duration) -> Iterator[User]:
    """The users who come within `seconds`."""
    number, comes = 0, 0.0
    while True:
        number += 1
        comes -= math.log(1 - _chance(f"gap {number}")) / RATE
        if comes >= seconds:
            return
        hasty = _chance(f"patience {number}") < _HASTY_SHARE
        yield User(number, comes, HASTY if hasty else PATIENCE)


@dataclass(slots=True)
class Visits:
    """The users of one run.

    Attributes:
        experiences: of those who have left.
        late: the most seconds that a user came later than planned, as this machine was busy.
    """

    experiences: list[Experience] = field(default_factory=list[Experience])
    late: Duration = 0.0

    async def drive(self, port: int, seconds: Duration, each: Callable[[], None]) -> None:
        """Let the users come to the edge at `port`, until the last one has left.

        `each` is called before each comes, and ends the run by raising.
        """
        begin = monotonic()
        async with tasks("users") as group:
            for user in users_for(seconds):
                await asyncio.sleep(max(0.0, begin + user.comes - monotonic()))
                self.late = max(self.late, monotonic() - begin - user.comes)
                each()
                group.start(self._visit(port, user), name=f"user {user.number}")

    async def _visit(self, port: int, user: User) -> None:
        began = monotonic()
        self.experiences.append(await _experience(port, user, began))


async def _experience(port: int, user: User, began: Instant) -> Experience:
    headers = {_GIVE_UP_AT: repr(began + user.patience)}
    try:
        async with asyncio.timeout(user.patience):
            reply = await ask(port, "POST", f"/checkout/{user.number}", headers)
    except TimeoutError:
        return Experience(user, monotonic() - began, 0)
    except (OSError, ValueError) as error:
        return Experience(user, monotonic() - began, 0, repr(error))
    took = monotonic() - began
    if reply.status == 200:
        return Experience(user, took, 200)
    return Experience(
        user, took, reply.status, "", reply, parse_problem(reply.body, reply.content_type)
    )
