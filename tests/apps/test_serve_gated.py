"""`--server hypercorn|granian`: the parts that a host starts and stops, on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from holdfast.adapters.asgi import HealthPages, HoldfastMiddleware
from holdfast.apps.serve import gated
from holdfast.apps.serve.gated import ServerName, gated_parts
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.problem import ServeError
from holdfast.domain.lifecycle.settings import StopSettings
from holdfast.runtime.lifecycle import ExitCode, Host, HostTerms
from tests.adapters.embedding import TERMS, Load, Story, bound, exchange, once_up, request, run

pytestmark = pytest.mark.system
SERVERS: list[ServerName] = ["hypercorn", "granian"]


class Stateful(Story):
    """Shares with its requests what it set up at the start."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["database"] = "here"
        elif scope["path"] == "/state":
            body = json.dumps(scope["state"]).encode()
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await super().__call__(scope, receive, send)


class Live:
    """A host with the parts of a service."""

    def __init__(self, name: ServerName, *, drain: float = 4.0, plan: Plan | None = None) -> None:
        self.story = Stateful()
        self.sock = bound()
        self.port: int = self.sock.getsockname()[1]
        self.host = host = Host("shop", terms=HostTerms(drain=drain, cleanup=1.0))

        async def report() -> Mapping[str, Any]:
            return (await host.health.ready()).as_dict()

        def tell(kind: str, subject: str, detail: str = "", **data: object) -> None:
            host.journal.write(kind, subject, detail, data=data)

        parts = gated_parts(
            name,
            Plan("shop:app", access_log=False) if plan is None else plan,
            HoldfastMiddleware(self.story),
            [self.sock],
            lambda: TERMS,
            tell,
            stop=StopSettings(),
            cut=host.cut,
            around=lambda app: HealthPages(app, report, stopping=lambda: host.cause),
        )
        host.add("application", parts.application, serves=False)
        host.add("server", parts.server)

    async def ask(self, path: str) -> tuple[int, str, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(path, "connection: close"))
        found = await exchange(reader)
        writer.close()
        return found


@pytest.mark.parametrize("name", SERVERS)
def test_a_whole_life(name: ServerName) -> None:
    async def main() -> None:
        live = Live(name)
        await live.host.start()
        await once_up(live.port)
        assert (await live.ask("/readyz"))[0] == 200
        assert json.loads((await live.ask("/state"))[2]) == {"database": "here"}
        load = Load(live.port)
        await load.warm()
        live.host.stop("a test")
        assert (await live.ask("/readyz"))[0] == 503
        assert await live.host.ended() is ExitCode.CLEAN
        await load.ended()
        assert (load.lost, load.fresh) == (0, 0)
        assert live.story.lines == ["startup", "shutdown"]
        steps = [r.subject for r in live.host.journal.records if r.kind == "drain.step"]
        assert [s for s in steps if s != "accept_queue"] == [
            "announce", "lame_duck_over", "listener_closed", "done",
        ]  # fmt: skip

    run(None, main())


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(("forced", "code"), [(False, ExitCode.TIMED_OUT), (True, ExitCode.FORCED)])
def test_what_never_ends_is_cut_and_the_exit_code_says_so(
    name: ServerName, forced: bool, code: ExitCode
) -> None:
    async def main() -> None:
        live = Live(name, drain=20.0 if forced else 2.0)
        await live.host.start()
        await once_up(live.port)
        asked = asyncio.create_task(live.ask("/wait/9"))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        live.host.stop("a test")
        if forced:
            await asyncio.sleep(0.2)
            live.host.force()
        assert await live.host.ended() is code
        assert time.monotonic() - began < 7
        status, head, _ = await asked
        assert status == 503
        assert "retry-after" in head
        assert live.story.lines == ["startup", "cancelled", "shutdown"]

    run(None, main())


@pytest.mark.parametrize("name", SERVERS)
def test_over_tls(name: ServerName, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, client = tmp_path / "cert.pem", ssl.create_default_context()
    authority.configure_trust(client)
    issued = authority.issue_cert("localhost")
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    certificate.write_bytes(chain)
    key = tmp_path / "key.pem"
    key.write_bytes(issued.private_key_pem.bytes())

    async def main() -> None:
        plan = Plan("shop:app", access_log=False, certificate=str(certificate), key=str(key))
        live = Live(name, plan=plan)
        await live.host.start()

        def ask() -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", live.port), timeout=10)
            secure = client.wrap_socket(plain, server_hostname="localhost")
            secure.sendall(request("/"))
            assert secure.recv(1000).startswith(b"HTTP/1.1 200")
            return secure

        # It keeps its connection, reads nothing any more, and so does not answer the close.
        idle = await asyncio.to_thread(ask)
        began = time.monotonic()
        live.host.stop("a test")
        assert await live.host.ended() is ExitCode.CLEAN
        assert time.monotonic() - began < 8
        idle.close()

    run(None, main())


def test_a_server_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated, "find_spec", lambda _: None)
    with pytest.raises(ServeError, match=r"pip install 'holdfast\[granian\]'"):
        _parts("granian", Plan("shop:app"))


@pytest.mark.parametrize("name", SERVERS)
def test_a_certificate_that_is_none_is_named(name: ServerName) -> None:
    with pytest.raises(ServeError, match="--ssl-certfile /nowhere"):
        _parts(name, Plan("shop:app", certificate="/nowhere"))


def _parts(name: ServerName, plan: Plan) -> None:
    def tell(kind: str, subject: str, detail: str = "", **data: object) -> None: ...

    with bound() as sock:
        gated_parts(
            name,
            plan,
            Story(),
            [sock],
            lambda: TERMS,
            tell,
            stop=StopSettings(),
            cut=lambda: None,
            around=lambda app: app,
        )
