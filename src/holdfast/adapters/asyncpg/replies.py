"""The answers to what we sent, taken out of what the server sends before asyncpg reads it.

The server answers in order, so ours come first; what it sends on its own account (notices,
notifications, changed settings) goes on to asyncpg wherever it stands. Bytes come split anywhere.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from holdfast.adapters.asyncpg.messages import ANSWERS_OF_PREFIX

__all__ = ["Answer", "Replies"]

_SET: Final = b"C\x00\x00\x00\x08SET\x00Z\x00\x00\x00\x05"
_SET_AND_STATUS: Final = len(_SET) + 1
_HEAD: Final = 5
_READY: Final = ord("Z")
_ERROR: Final = ord("E")
_ROW: Final = ord("D")
_OF_ITS_OWN: Final = b"NAS"
_FATAL: Final = (b"VFATAL\0", b"VPANIC\0")


class Answer:
    """The answer to something that we sent.

    Attributes:
        types: of the messages to come, where they are known one by one and no Sync follows; empty
            for all up to the next that says that the server is ready.
        failed: the server said that it failed.
        row: the first row that came; none without.
    """

    __slots__ = ("failed", "row", "types")

    def __init__(self, types: bytes = b"") -> None:
        self.types = types
        self.failed = False
        self.row: bytes | None = None

    @property
    def text(self) -> list[str]:
        """The values of the row."""
        row, at = self.row or b"", 2
        values: list[str] = []
        while at < len(row):
            size = int.from_bytes(row[at : at + 4], "big")
            values.append(row[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return values


class Replies:
    """What is still to come.

    Attributes:
        awaited: answers, the next one first.
    """

    __slots__ = ("_part", "awaited")

    def __init__(self) -> None:
        self.awaited: deque[Answer] = deque()
        self._part = b""

    def strip(self, data: bytes) -> tuple[bytes, list[Answer]]:
        """What is not ours of `data`, and the answers that are complete with it."""
        awaited = self.awaited
        if (
            data.startswith(_SET)
            and len(data) >= _SET_AND_STATUS
            and not self._part
            and len(awaited) == 1
            and not awaited[0].types
        ):
            return data[_SET_AND_STATUS:], [awaited.popleft()]
        return self._strip(self._part + data)

    def _strip(self, data: bytes) -> tuple[bytes, list[Answer]]:
        theirs: list[bytes] = []
        done: list[Answer] = []
        at = 0
        while self.awaited and at + _HEAD <= len(data):
            end = at + 1 + int.from_bytes(data[at + 1 : at + _HEAD], "big")
            if end > len(data):
                break
            kind, message = data[at], data[at:end]
            at = end
            if kind in _OF_ITS_OWN:
                theirs.append(message)
                continue
            answer = self.awaited[0]
            if not self._taken(answer, kind, message):
                theirs.append(message)
            if answer.failed if answer.types else kind == _READY:
                done.append(self.awaited.popleft())
            elif answer.types:
                answer.types = answer.types[1:]
                if not answer.types:
                    done.append(self.awaited.popleft())
        if self.awaited:
            self._part = data[at:]
        else:
            self._part = b""
            theirs.append(data[at:])
        return b"".join(theirs), done

    @staticmethod
    def _taken(answer: Answer, kind: int, message: bytes) -> bool:
        if kind == _ERROR:
            answer.failed = True
            # Without a Sync of its own the error is also that of what follows. And of a fatal one
            # asyncpg must know, since nothing else comes any more.
            return not answer.types and not any(sign in message for sign in _FATAL)
        if kind == _ROW and answer.row is None:
            answer.row = message[_HEAD:]
        return True

    def prefixed(self) -> Answer:
        """A prefix is sent."""
        answer = Answer(ANSWERS_OF_PREFIX)
        self.awaited.append(answer)
        return answer

    def queried(self) -> Answer:
        """A query of its own, or a Sync, is sent."""
        answer = Answer()
        self.awaited.append(answer)
        return answer
