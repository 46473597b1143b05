"""Names by the messages of name servers, which say how long each record may be kept.

    resolver = Resolver(DnsLookup())

Asks the servers of resolv.conf, tries its search domains as the C library does, and reads the file
again when it changes. What getaddrinfo knows from elsewhere - multicast names, those of sssd - it
does not know; the hosts file and `localhost` are the resolver's. Of dnspython nothing but the
messages is used: they are sent by `holdfast.runtime.net.queries`, in one thread for all questions.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, cast

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype

from holdfast.domain.discovery.names import Answer
from holdfast.ports.lookup import Done
from holdfast.runtime.net.hosts import RESOLV_CONF, ResolvConf, Watched
from holdfast.runtime.net.queries import Queries, Question, Server, Verdict, rounds

__all__ = ["DnsLookup"]

_TELLS: Final = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


class DnsLookup:
    """A `Lookup` that asks name servers for A and AAAA records.

    Args:
        servers: literal addresses, `10.0.0.2`, `10.0.0.2:5353` or `[fd00::2]:5353`; those of
            `conf` when none are given.
        conf: resolv.conf: servers, search domains, ndots, timeout, attempts.

    Raises:
        ValueError: an address cannot be read.
    """

    kinds = ("A", "AAAA")

    def __init__(self, servers: Sequence[str] = (), *, conf: Path = RESOLV_CONF) -> None:
        self._servers = tuple(_server(text) for text in servers)
        self._conf = Watched(conf, ResolvConf.parse)
        self._queries = Queries()

    @property
    def asks(self) -> str:
        """The addresses of the servers."""
        return ", ".join(str(server) for server in self._asked(self._conf.value()))

    def start(self, name: str, kind: str, done: Done) -> None:
        """Ask; see `Lookup`."""
        conf = self._conf.value()
        plan = tuple(rounds(self._asked(conf), conf.timeout, conf.attempts))
        _Search(self._queries, plan, conf.candidates(name), kind, done).next()

    def close(self) -> None:
        """Let the thread go, with its sockets."""
        self._queries.close()

    def _asked(self, conf: ResolvConf) -> tuple[Server, ...]:
        return self._servers or tuple(Server(host) for host in conf.servers)


class _Search:
    """One look-up: the names to try, one after the other."""

    def __init__(
        self,
        queries: Queries,
        plan: Sequence[tuple[Server, float]],
        names: Sequence[str],
        kind: str,
        done: Done,
    ) -> None:
        self._queries = queries
        self._plan = plan
        self._names = deque(names)
        self._kind = dns.rdatatype.from_text(kind)
        self._done = done
        self._least: float | None = None
        self._doubt: OSError | None = None

    def next(self) -> None:
        """Ask for the next name, or say that there is none."""
        while self._names:
            name = self._names.popleft()
            try:
                query = dns.message.make_query(name, self._kind, use_edns=False)
                message = query.to_wire()
            except (dns.exception.DNSException, UnicodeError):
                continue  # no such name can exist, though a shorter one may
            judge = _Judge(query)
            done = partial(self._told, name, judge)
            self._queries.ask(Question(message, judge, self._plan, done))
            return
        # A domain that could not be asked may have the name: that there is none is not known then.
        self._done(self._doubt or Answer((), self._least or 0.0, exists=False))

    def _told(self, name: str, judge: _Judge, result: bytes | str) -> None:
        if isinstance(result, str):
            kind = dns.rdatatype.to_text(self._kind)
            error = socket.gaierror(socket.EAI_AGAIN, f"no answer for {name!r} {kind} ({result})")
            if judge.refused:
                # The servers live. As the C library does, try the other names.
                self._doubt = self._doubt or error
                self.next()
                return
            self._done(error)
            return
        answer = judge.answer
        assert answer is not None
        if answer.exists:
            self._done(answer)
            return
        # That none of the names exists is right for as long as it is for each of them.
        self._least = answer.ttl if self._least is None else min(self._least, answer.ttl)
        self.next()


class _Judge:
    """Reads what comes.

    Attributes:
        answer: what was said, after an answer.
        refused: whether some server said that it cannot tell.
    """

    def __init__(self, query: dns.message.QueryMessage) -> None:
        self._query = query
        self.answer: Answer | None = None
        self.refused = False

    def __call__(self, message: bytes) -> Verdict:
        try:
            response = dns.message.from_wire(message, ignore_trailing=True)
            # The identifier, and that it repeats the question: half of what keeps forgers out.
            if not self._query.is_response(response):
                return Verdict.FOREIGN
            if response.flags & dns.flags.TC:
                return Verdict.CUT
            if response.rcode() not in _TELLS or not isinstance(response, dns.message.QueryMessage):
                self.refused = True
                return Verdict.REFUSED
            self.answer = _read(response)
        except (dns.exception.DNSException, ValueError):
            return Verdict.FOREIGN
        return Verdict.ANSWER


def _read(response: dns.message.QueryMessage) -> Answer:
    # The least time to live along the chain of CNAMEs; of a negative answer the minimum of the SOA
    # record is among them (RFC 2308, section 5).
    chain = response.resolve_chaining()
    if chain.answer is None:
        # Without that record it must not be kept.
        kept = any(records.rdtype == dns.rdatatype.SOA for records in response.authority)
        exists = response.rcode() != dns.rcode.NXDOMAIN
        return Answer((), float(chain.minimum_ttl) if kept else 0.0, exists)
    records = cast("Iterable[dns.rdata.Rdata]", chain.answer)
    addresses = tuple(record.to_text() for record in records)
    return Answer(addresses, float(chain.minimum_ttl))


def _server(text: str) -> Server:
    host, port = text, "53"
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
        return Server(host, int(port))
    except (OSError, ValueError) as exc:
        raise ValueError(f"{text!r} is no address of a name server, such as 10.0.0.2:53") from exc
