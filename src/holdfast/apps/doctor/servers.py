"""How names are looked up here, and whether anybody answers."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast.apps.doctor.facts import LookUp, NameFacts, Reply
from holdfast.domain.instant import Duration
from holdfast.ports.lookup import Done
from holdfast.runtime.clock import monotonic
from holdfast.runtime.net.hosts import ResolvConf
from holdfast.runtime.net.resolver import Resolver

__all__ = ["LIMIT", "NOWHERE", "dead_name", "dead_searched", "names"]

LIMIT: Final[Duration] = 1.0
"""Seconds that a server, and a look-up, may take here."""

NOWHERE: Final = "holdfast-doctor.invalid."
"""A name that does not exist (RFC 2606, section 2)."""

_EXAMPLE: Final = "api.example.com"
_DNS: Final = 53
_SILENT_FOR: Final[Duration] = 0.1
_NO_SUCH: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def names(
    asked: Sequence[str] = (), *, root: Path = Path("/"), port: int = _DNS, limit: Duration = LIMIT
) -> NameFacts:
    """Read, ask and look up; takes `limit` for each that does not answer.

    Args:
        asked: names to look up, beside one that needs no server and one that does not exist.
        root: where `etc` is.
        port: of the name servers.
        limit: seconds for the servers together, and for each look-up.
    """
    text = _text(root / "etc/resolv.conf")
    # glibc takes these words last.
    conf = ResolvConf.parse(f"{text}\noptions {os.environ.get('RES_OPTIONS', '')}\n")
    looked_up = tuple(_look_up(name, limit) for name in ("localhost", NOWHERE, *asked))
    return NameFacts(
        servers=conf.servers,
        search=conf.search,
        ndots=conf.ndots,
        timeout=conf.timeout,
        attempts=conf.attempts,
        sources=_sources(_text(root / "etc/nsswitch.conf")),
        replies=_ask(conf.servers, port, limit),
        look_ups=looked_up,
        dead_name=dead_name(conf),
        dead_searched=dead_searched(conf),
        asked_first=conf.candidates(_EXAMPLE).index(_EXAMPLE),
        bound_late=_silence(),
    )


def dead_name(conf: ResolvConf) -> Duration:
    """Seconds of a getaddrinfo when no server answers.

    As glibc waits (resolv/res_send.c): for the first server the time-out, for the next ones twice
    as long each, divided by their number; in whole seconds, and all of that once for each attempt.
    """
    count = len(conf.servers)
    seconds = int(conf.timeout)
    each = [seconds] + [max(1, (seconds << at) // count) for at in range(1, count)]
    return float(sum(each) * conf.attempts)


def dead_searched(conf: ResolvConf) -> Duration:
    """The same for a name that does not end in a dot: with the first search domain, and as it is.

    After one that nobody answers for glibc tries no other domain (resolv/res_query.c).
    """
    return dead_name(conf) * (2 if conf.search else 1)


def _sources(text: str) -> tuple[str, ...]:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and words[0] == "hosts:":
            return tuple(word for word in words[1:] if not word.startswith("["))
    return ()


def _look_up(name: str, limit: Duration) -> LookUp:
    # With a resolver of its own for each: nothing may come from the cache.
    resolver = Resolver()
    begun = monotonic()
    try:
        found = resolver.resolve_blocking(name, 0, limit=begun + limit)
        ended, detail = "found", ", ".join(str(address.sockaddr[0]) for address in found)
    except socket.gaierror as error:
        ended = "no such name" if error.errno in _NO_SUCH else "failed"
        detail = str(error.strerror)
    except TimeoutError as error:
        ended, detail = "no answer", str(error)
    except OSError as error:
        ended, detail = "failed", str(error)
    took = monotonic() - begun
    resolver.close()
    return LookUp(name, took, ended, detail)


def _ask(servers: Sequence[str], port: int, limit: Duration) -> tuple[Reply, ...]:
    """Ask each server for the root, which every one knows, all at once."""
    replies: dict[str, Reply] = {}
    waiting: dict[str, tuple[socket.socket, bytes]] = {}
    begun = monotonic()
    with selectors.DefaultSelector() as selector:
        try:
            for server in dict.fromkeys(servers):
                try:
                    waiting[server] = asked = _send(server, port)
                    selector.register(asked[0], selectors.EVENT_READ, server)
                except OSError as error:
                    replies[server] = Reply(server, None, _words(error))
            while len(replies) < len(set(servers)) and (left := begun + limit - monotonic()) > 0:
                for key, _ in selector.select(left):
                    reply = _receive(key.data, *waiting[key.data], begun)
                    if reply is not None:
                        replies[key.data] = reply
                        selector.unregister(key.fileobj)
        finally:
            for sock, _ in waiting.values():
                sock.close()
    return tuple(
        replies.get(server, Reply(server, None, f"no answer within {limit:g} s"))
        for server in dict.fromkeys(servers)
    )


def _send(server: str, port: int) -> tuple[socket.socket, bytes]:
    """A question under way, with its id: name server records (2) of the root, class IN (1)."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    number = os.urandom(2)
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(socket.getaddrinfo(server, port, type=socket.SOCK_DGRAM, flags=_LITERAL)[0][4])
        # Recursion is desired; one question (RFC 1035, section 4.1).
        sock.send(number + b"\1\0\0\1\0\0\0\0\0\0" + b"\0\0\2\0\1")
    except OSError:
        sock.close()
        raise
    return sock, number


_LITERAL: Final = socket.AI_NUMERICHOST


def _receive(server: str, sock: socket.socket, number: bytes, begun: float) -> Reply | None:
    """Its answer, whatever it says; none for what is not one."""
    try:
        message = sock.recv(4096)
    except BlockingIOError:
        return None
    except OSError as error:
        return Reply(server, None, _words(error))
    if message[:2] != number or len(message) < 12:
        return None
    return Reply(server, monotonic() - begun)


class _Silent:
    """A name server that never answers."""

    kinds = ("A",)
    asks = "nobody"

    def start(self, name: str, kind: str, done: Done) -> None:
        """Ask nobody."""

    def close(self) -> None:
        """Nothing is open."""


def _silence() -> Duration:
    """Seconds after its limit that a look-up ended whose server is silent."""
    limit = monotonic() + _SILENT_FOR
    with suppress(TimeoutError):  # as it should be; how late, is the result
        Resolver(_Silent()).resolve_blocking("silent.invalid", 0, limit=limit)
    return monotonic() - limit


def _words(error: OSError) -> str:
    return error.strerror or str(error)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
