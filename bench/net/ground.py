"""The network that servers and clients are on: a namespace of its own, or loopback.

In the namespace the firewall drops what knocks at one port, and the name server of all names never
answers; nothing of the host is changed, and it goes when the last process in it does. It takes
`unshare`, `ip` and `nft`, and root or user namespaces.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

from bench.net.hostile import DROPPED, NAMES, THREE

__all__ = ["prepare_loopback", "prepare_namespace", "unshared", "why_no_namespace"]

_DEAD: Final = 10.0
"""Seconds that the C library asks a dead name server, with the defaults of resolv.conf."""

_FIREWALL: Final = f"""
table inet bad {{
    chain input {{
        type filter hook input priority 0;
        tcp dport {DROPPED} drop
    }}
}}
"""
_HOSTS: Final = "127.0.0.1 localhost\n" + "".join(f"{address} three.test\n" for address in THREE)
_FILES: Final = {
    "/etc/hosts": _HOSTS,
    "/etc/resolv.conf": f"nameserver {NAMES[0]}\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
}


@cache
def unshared() -> tuple[str, ...]:
    """What a command line begins with to run in a namespace of its own; nothing if it cannot."""
    program = shutil.which("unshare")
    for options in (["--net", "--mount"], ["--net", "--mount", "--map-root-user"]):
        command = (str(program), *options, "--")
        if program and not _failure(
            [*command, "sh", "-c", "ip link set lo up && nft list ruleset"]
        ):
            return command
    return ()


@cache
def why_no_namespace() -> str:
    """Why there is no namespace of our own; empty if there is."""
    missing = [name for name in ("unshare", "ip", "nft") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (`sh tools/packages.sh` as root does it)"
    if unshared():
        return ""
    said = _failure([str(shutil.which("unshare")), "--net", "--mount", "--map-root-user", "true"])
    return f"no network namespace can be made here: {said or 'ip or nft fail in it'}"


def _failure(command: list[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
    )
    return (done.stderr.strip() or f"exit {done.returncode}") if done.returncode else ""


def prepare_namespace() -> None:
    """Make this namespace, which must be one of our own, the bad one."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["nft", "-f", "-"], input=_FIREWALL, text=True, check=True)
    with tempfile.TemporaryDirectory(prefix="bench-net-") as name:
        for path, text in _FILES.items():
            file = Path(name, Path(path).name)
            file.write_text(text)
            file.chmod(0o644)
            # What is mounted stays when its file is unlinked.
            subprocess.run(["mount", "--bind", str(file), path], check=True)


def prepare_loopback() -> None:
    """Make names as bad as those of the namespace, for this process and those it forks."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name == "dead.test":
            time.sleep(_DEAD)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if name == "three.test":
            return [found for one in THREE for found in real(one, port, *rest, **more)]
        return real(host, port, *rest, **more)

    socket.getaddrinfo = getaddrinfo
