"""What every connection of ours knows: which command is under way, and how many answers are owed.

An answer that is owed is what makes a connection dangerous: whoever uses it next would get it. So
the commands that were handed over are counted, and the answers that came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from holdfast.adapters.redis.blocking import SUBSCRIBES, rule_for, shortened
from holdfast.adapters.redis.errors import Command, admitted, mark_sent, named
from holdfast.adapters.redis.retrying import bounded_retry
from holdfast.adapters.redis.settings import Settings
from holdfast.domain.instant import NEVER, Duration, Instant
from holdfast.runtime.scope import ambient

__all__ = ["HARMLESS", "Counting"]

HARMLESS: Final[set[Any]] = set()
"""Commands that were looked at, and neither wait nor subscribe."""
_MOST: Final = 1024


class Underway(NamedTuple):
    """What a connection knows of the command that is to be sent; see `Counting`."""

    name: Any
    blocks: bool
    lifted: bool
    waited: tuple[Command, Duration] | None
    packed: tuple[Any, int] | None


class Counting:
    """To be mixed into a connection of redis-py, by the two that follow.

    Attributes:
        holdfast: what the carrier was told.
        owed: answers that have not come yet.
        subscribed: whether messages come, which nobody has asked for: then nothing is counted.
        cut: answers that were owed when the connection was closed the last time, if all that was
            handed over had left.
        waited: the last command, when its wait at the server was made shorter.
        blocks: whether the last command waits at the server.
        asked: instant at which the last one began that has a deadline.
        lifted: whether it does so under a deadline, so that a time-out of the socket is out of
            place.
        preparing: whether what it sends is of its own: a handshake, a health check.
    """

    holdfast: Settings
    owed: int = 0
    subscribed: bool = False
    cut: int = 0
    waited: tuple[Command, Duration] | None = None
    blocks: bool = False
    asked: Instant = NEVER
    lifted: bool = False
    preparing: int = 0
    _name: Any = "command"
    _packed: tuple[Any, int] | None = None

    @property
    def retry(self) -> Any:
        """The `Retry` of redis-py, within the budget."""
        return self.__dict__["retry"]

    @retry.setter
    def retry(self, retry: Any) -> None:
        self.__dict__["retry"] = bounded_retry(retry, self.holdfast)

    def admit(self) -> None:
        """Refuse when too little is left.

        Raises:
            InsufficientBudget: nothing was sent.
        """
        now = admitted(self._name, self.holdfast.refuse_below)
        if now is not None:
            self.asked = now

    def interrupted(self) -> None:
        """Its answer is waited for no more: the error of the scope that has ended will name it."""
        command = Command(named(self._name))
        command.begun = min(command.begun, self.asked)
        command.interrupted()

    def within(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a command, which may wait at the server no longer than is left."""
        name = args[0]
        self.calm(name)
        if name in HARMLESS:
            return args
        rule = rule_for(name)
        if rule is None:
            if not (isinstance(name, str) and " " in name):
                if len(HARMLESS) < _MOST:
                    HARMLESS.add(name)
                return args
            words = name.split()
            rule = rule_for(words[0]) if words else None
            if rule is None:
                return args
            args = (*words, *args[1:])
        if rule is SUBSCRIBES:
            self.subscribed, self.owed = True, 0
            return args
        self.blocks = rule.at(args) is not None
        here = ambient()
        if not self.blocks or here is None or here.limit == NEVER:
            return args
        self.lifted = True
        command = Command(named(args[0]))
        found = shortened(rule, args, command.left, self.holdfast.margin)
        if found is None:
            return args
        args, seconds = found
        if rule.nothing:
            self.waited = (command, seconds)
        return args

    def calm(self, name: Any) -> None:
        """The command that is to be sent does not wait, as far as is known."""
        self._name = name
        if self.blocks or self.waited is not None:
            self.blocks = self.lifted = False
            self.waited = None

    def within_all(self, commands: Iterable[Any]) -> list[Any]:
        """The same for a pipeline, whose answers of nothing are handed on."""
        found = list(commands)
        blocks = lifted = False
        for index, args in enumerate(found):
            if args[0] not in HARMLESS:
                found[index] = self.within(tuple(args))
                blocks, lifted = blocks or self.blocks, lifted or self.lifted
        self.resume(Underway("pipeline", blocks, lifted, None, None))
        return found

    def pause(self) -> Underway:
        """What is known of the command that is to be sent; a connection is made before it is."""
        return Underway(self._name, self.blocks, self.lifted, self.waited, self._packed)

    def resume(self, known: Underway) -> None:
        """See `pause`."""
        self._name, self.blocks, self.lifted, self.waited, self._packed = known

    def failed(self, error: BaseException) -> None:
        """An error came after a command was handed over; the retry has to know, if it was a user's.

        A handshake or a health check may be done again without harm.
        """
        if not self.preparing and isinstance(error, Exception):
            mark_sent(error, self._name, self.asked)

    def counted(self, packed: Any, commands: int) -> Any:
        """Note how many commands `packed` is."""
        self._packed = (packed, commands)
        return packed

    def handed_over(self, packed: Any) -> None:
        """The commands that `packed` is are owed an answer from now on."""
        known, self._packed = self._packed, None
        if not self.subscribed:
            self.owed += known[1] if known is not None and known[0] is packed else 1

    def not_nothing(self, response: Any) -> Any:
        """The response, unless it is nothing because we had the server wait for a shorter time.

        Raises:
            DeadlineExceeded: it is.
        """
        waited, self.waited = self.waited, None
        if waited is None or response:
            return response
        command, seconds = waited
        detail = f"the server had nothing for {seconds:.3f} s, which is what was left less a margin"
        raise command.over(detail)

    def closed(self, unsent: int) -> None:
        """The connection is closed, with `unsent` bytes of it still here."""
        self.cut = 0 if unsent else self.owed
        self.owed = 0
        self.waited, self.subscribed = None, False
