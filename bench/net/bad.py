"""The 13 ways in which the other side can be bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = ["FINE", "HOPS", "PACE", "SCENARIOS", "Ask", "Scenario", "ask_for"]

PACE: Final = 0.5
"""Seconds between two bytes of a trickle, and between two interim responses."""
HOPS: Final = 20
UPLOAD: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of them.

    Attributes:
        name: short.
        what: is wrong there.
        phase: in which a call is when its time is up.
        url: with `{...}` for what `hostile` says about itself.
        upload: bytes that are sent with it.
        proxy: through which it goes, likewise.
    """

    name: str
    what: str
    phase: str
    url: str
    upload: int = 0
    proxy: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request."""

    url: str
    upload: int = 0
    proxy: str = ""


_HTTP: Final = "http://127.0.0.1:{http}"

FINE: Final = Scenario("fine", "nothing is wrong", "", f"{_HTTP}/fine")
SCENARIOS: Final = {
    one.name: one
    for one in (
        Scenario("dns", "the name server never answers", "dns.resolve", "http://dead.test:{http}/"),
        Scenario("syn", "what knocks is dropped", "tcp.connect", "http://127.0.0.1:{dropped}/"),
        Scenario(
            "syn3", "a name with three such addresses", "tcp.connect", "http://three.test:{three}/"
        ),
        Scenario("backlog", "the accept queue is full", "tcp.connect", "http://127.0.0.1:{full}/"),
        Scenario("tls", "no word after the accept", "tls.handshake", "https://localhost:{mute}/"),
        Scenario(
            "tlsT",
            "a TLS handshake of one byte per half second",
            "tls.handshake",
            "https://localhost:{slowly}/",
        ),
        Scenario("nohdr", "the request is read, no answer", "http.header", f"{_HTTP}/silent"),
        Scenario("hdrT", "headers of one byte per half second", "http.header", f"{_HTTP}/header"),
        Scenario("body", "a body of one byte per half second", "http.body", f"{_HTTP}/body"),
        Scenario("1xx", "103 Early Hints each half second", "http.header", f"{_HTTP}/interim"),
        Scenario(
            "up", "64 MiB to a peer that does not read", "http.request", f"{_HTTP}/deaf", UPLOAD
        ),
        Scenario("redir", f"{HOPS} redirects of 0.6 s", "http.header", f"{_HTTP}/hop/0"),
        Scenario(
            "prox",
            "a proxy that does not answer CONNECT",
            "proxy.connect",
            "https://localhost:{mute}/",
            proxy=_HTTP,
        ),
    )
}


def ask_for(name: str, places: dict[str, Any]) -> Ask:
    """The request of a scenario, once it is known where the servers are."""
    one = FINE if name == FINE.name else SCENARIOS[name]
    return Ask(one.url.format(**places), one.upload, one.proxy.format(**places))
