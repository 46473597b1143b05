"""What clients of `holdfast serve` see of a stop: few and many, with TLS, HTTP/2, WebSockets."""

from __future__ import annotations

import asyncio
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.adapters.test_uvicorn_sockets import Http2Client
from tests.apps.serving import Home
from tests.system.stopping import Life, living, on_asyncio, soon

pytestmark = pytest.mark.system

SETTINGS = """
[stop]
grace = "60s"
base = "30s"
cleanup = "5s"
lame_duck = "2s"
calm = "200ms"
quiet = "300ms"
"""
ASK = b"GET /wait/%s HTTP/1.1\r\nhost: t\r\n\r\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def stopped(life: Life, code: int = 0) -> None:
    assert life.ended() == code, life.story()


# -- few and many ----------------------------------------------------------------------------------


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head, await reader.readexactly(size)


async def keep_alive(life: Life, count: int) -> list[tuple[bytes, bytes]]:
    """`count` connections that are used before the stop, and of which each has a request then."""
    port = life.served.port
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in opened:
        writer.write(ASK % b"0")
    first = await asyncio.gather(*(answer(reader) for reader, _ in opened))
    assert all(b"connection: close" not in head for head, _ in first)
    for _, writer in opened:
        writer.write(ASK % b"1.5")
    await asyncio.sleep(0.5)
    life.send(signal.SIGTERM)
    found = list(await asyncio.gather(*(answer(reader) for reader, _ in opened)))
    ends = await asyncio.gather(*(reader.read() for reader, _ in opened))
    assert set(ends) == {b""}
    for _, writer in opened:
        writer.close()
    return found


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("count", [2, 500])
def test_all_that_is_in_flight_is_answered(home: Home, count: int, loop: str) -> None:
    on_asyncio(home, loop)
    with living(home, "plain", SETTINGS, "--no-access-log") as life:
        found = asyncio.run(keep_alive(life, count))
        assert all(head.startswith(b"HTTP/1.1 200 ") and body == b"waited" for head, body in found)
        assert all(b"\r\nconnection: close" in head for head, _ in found)
        stopped(life)
        assert life.verdict().endswith(f"{count} requests finished, none cut")
        assert life.records("process.snapshot")[0]["data"]["requests"]["answered"] == 2 * count


async def never_answered(life: Life, count: int) -> list[bytes]:
    port = life.served.port
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in opened:
        writer.write(b"GET /hang HTTP/1.1\r\nhost: t\r\n\r\n")
    await asyncio.sleep(1)
    life.send(signal.SIGTERM)
    found = list(await asyncio.gather(*(reader.read() for reader, _ in opened)))
    for _, writer in opened:
        writer.close()
    return found


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_five_hundred_that_never_end_are_all_told_why(home: Home, loop: str) -> None:
    on_asyncio(home, loop)
    settings = SETTINGS.replace('base = "30s"', 'base = "500ms"\nretry_after = "9s"')
    settings += '[timeouts]\nrequest = "20s"\n'
    with living(home, "plain", settings, "--no-access-log") as life:
        found = asyncio.run(never_answered(life, 500))
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in found)
        assert all(b'"kind": "shutdown"' in answer for answer in found)
        assert all(b"\r\nretry-after: 9\r\n" in answer for answer in found)
        stopped(life, 4)
        assert life.records("process.ended")[0]["data"]["cut"] == 500
        assert life.said().count("cancelled CancelledError shutdown") == 500


# -- TLS and HTTP/2 --------------------------------------------------------------------------------


def certificate(home: Home, authority: trustme.CA) -> tuple[str, str]:
    """Paths of a certificate and of its key."""
    made = authority.issue_cert("127.0.0.1", "localhost")
    made.cert_chain_pems[0].write_to_path(str(home.path / "cert.pem"))
    made.private_key_pem.write_to_path(str(home.path / "key.pem"))
    return "cert.pem", "key.pem"


async def over_http2(life: Life, trust: ssl.SSLContext) -> Http2Client:
    """Twenty streams that are open when the stop begins, on a connection that was used before."""
    streams = await asyncio.open_connection("127.0.0.1", life.served.port, ssl=trust)
    client = Http2Client(*streams)
    client.ask("/healthz")
    await client.until(1)
    for _ in range(20):
        client.ask("/wait/1")
    await asyncio.sleep(0.3)
    life.send(signal.SIGTERM)
    await client.until(21)
    await client.until_closed()
    client.writer.transport.abort()
    return client


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_http2_over_tls(home: Home, authority: trustme.CA, loop: str) -> None:
    on_asyncio(home, loop)
    cert, key = certificate(home, authority)
    trust = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    trust.set_alpn_protocols(["h2"])
    words = ("--ssl-certfile", cert, "--ssl-keyfile", key, "--http2")
    with living(home, "plain", SETTINGS, *words) as life:
        client = asyncio.run(over_http2(life, trust))
        assert set(client.answers.values()) == {"200"}
        assert client.goaways == [2**31 - 1, 41]
        stopped(life)
        assert "Traceback" not in life.served.log()


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_pool_over_tls(home: Home, authority: trustme.CA, http2: bool, loop: str) -> None:
    on_asyncio(home, loop)
    cert, key = certificate(home, authority)
    words = ["--ssl-certfile", cert, "--ssl-keyfile", key, *(["--http2"] if http2 else [])]
    trust = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with living(home, "plain", SETTINGS, *words) as life:
        url = life.served.url
        assert url.startswith("https://127.0.0.1:")
        with httpx.Client(http2=http2, verify=trust, base_url=url, timeout=20) as client:
            found: list[httpx.Response] = []
            # httpx gives up what is in flight when it sees a GOAWAY, even one that spares it.
            seconds, count = (0, 1) if http2 else (1, 20)
            threads = [
                threading.Thread(target=lambda: found.append(client.get(f"/wait/{seconds}")))
                for _ in range(count)
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            life.send(signal.SIGTERM)
            for thread in threads:
                thread.join()
            assert [answer.status_code for answer in found] == [200] * count
            assert {answer.http_version for answer in found} == {"HTTP/2" if http2 else "HTTP/1.1"}
            stopped(life)  # while the client still has its connections, and reads nothing
        assert "Traceback" not in life.served.log()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--ssl-certfile", "none.pem"], "No such file or directory"),
        (["--ssl-certfile", "empty.pem"], "give a certificate and its key, both PEM"),
        (["--ssl-certfile", "cert.pem"], ""),  # without its key
        (["--ssl-certfile", "cert.pem", "--ssl-keyfile", "none.pem"], "No such file or directory"),
        (["--ssl-certfile", "cert.pem", "--ssl-keyfile", "other.pem"], "mismatch"),
        (["--ssl-certfile", "cert.pem", "--ssl-keyfile", "locked.pem"], "pass phrase"),
        (["--ssl-certfile", "."], "Is a directory"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_wrong_certificate_is_one_sentence(
    home: Home, authority: trustme.CA, words: list[str], why: str, workers: str
) -> None:
    certificate(home, authority)
    trustme.CA().issue_cert("other").private_key_pem.write_to_path(str(home.path / "other.pem"))
    home.write("empty.pem", "")
    home.write("locked.pem", locked((home.path / "key.pem").read_bytes()))
    done = home.run("serve", "plain:app", "--port", "0", "--workers", workers, *words)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if "--ssl-certfile" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("holdfast")
    assert why in said[0]
    assert "_ssl.c" not in said[0]
    assert "pass phrase:" not in done.stderr  # nobody is asked
    assert "Traceback" not in done.stderr


def locked(key: bytes) -> str:
    from cryptography.hazmat.primitives import serialization

    private = serialization.load_pem_private_key(key, None)
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ).decode()


# -- WebSockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("returning", [True, False])
def test_websockets_and_their_handlers_are_told_why(home: Home, returning: bool, loop: str) -> None:
    on_asyncio(home, loop)
    settings = f"{SETTINGS}returning = {str(returning).lower()}\n"
    code = 1012 if returning else 1001
    with living(home, "plain", settings) as life:
        url = life.served.url.replace("http", "ws")
        with connect(f"{url}/sleeps") as sleeps, connect(f"{url}/reads") as reads:
            life.send(signal.SIGTERM)
            for client in (sleeps, reads):
                with pytest.raises(ConnectionClosed):
                    client.recv(20)
                assert client.close_code == code
            stopped(life)
        assert sorted(life.said()[2:4]) == [
            "websocket ended CancelledError shutdown", f"websocket read {code}",
        ]  # fmt: skip
        counts = life.records("process.snapshot")[0]["data"]["requests"]
        assert counts["ended.shutdown"] == 1
        assert "disconnected" not in counts


def test_a_websocket_that_its_client_leaves_is_another_matter(home: Home) -> None:
    with living(home, "plain", SETTINGS) as life:
        with connect(f"{life.served.url.replace('http', 'ws')}/sleeps") as client:
            client.close(1001)
        assert soon(lambda: life.said()[2:])
        assert life.said()[2] == "websocket ended CancelledError client_disconnected"
        life.send(signal.SIGTERM)
        stopped(life)
