"""The settings of one run: plain values, so that a worker process can be given them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from holdfast.apps.serve.problem import ServeError
from holdfast.runtime.policyfile import PolicyFile, PolicyFileError, find_policy, with_meaning

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `holdfast serve` was asked to do.

    Attributes:
        target: the application, `MODULE:ATTR`.
        factory: whether the attribute makes the application when it is called.
        host: address to listen on.
        port: TCP port; 0 for any free one.
        uds: path of a Unix socket to listen on instead; empty for none.
        workers: number of processes that serve.
        reload: whether to start again when source files change.
        access_log: whether each request is logged.
        admin: whether the operator's socket is open.
        server: what serves.
        http2: whether HTTP/2 is spoken.
        certificate: path of the certificate chain (PEM), for TLS; empty for none.
        key: path of its private key; empty where that is in the same file.
        timeline: path of a file that what happens is written to; empty for none.
        service: name of the service, over what the policy file says; empty for what that says.
        config: the policy file that was named; `None` for the default one.
        source: the policy file that was read; `None` for the built-in policy.
        data: what it said.
        home: the directory in which the command was given.
    """

    target: str
    factory: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str = ""
    workers: int = 1
    reload: bool = False
    access_log: bool = True
    admin: bool = True
    server: Literal["uvicorn", "hypercorn", "granian"] = "uvicorn"
    http2: bool = False
    certificate: str = ""
    key: str = ""
    timeline: str = ""
    service: str = ""
    config: Path | None = None
    source: Path | None = None
    data: Mapping[str, object] = field(default_factory=dict[str, object])
    home: Path = field(default_factory=Path.cwd)

    def read(self) -> PolicyFile:
        """The policy that the file says now.

        Raises:
            ServeError: the file is missing or wrong.
        """
        try:
            return find_policy(self.config, self.service, self.home)
        except PolicyFileError as error:
            raise ServeError(str(error)) from None

    def policy(self) -> PolicyFile:
        """The policy to begin with.

        Read anew in a process that reloads; workers get what the parent has read and found right.

        Raises:
            ServeError: the file was changed since and is wrong now.
        """
        if self.reload:
            return self.read()
        try:
            return with_meaning(self.source, self.data, self.service)
        except PolicyFileError as error:
            raise ServeError(str(error)) from None
