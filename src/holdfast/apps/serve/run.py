"""`holdfast serve`, all of it together."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from holdfast._version import __version__
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.stopplan import memory_of, stop_plan
from holdfast.domain.lifecycle.quota import threads_for
from holdfast.domain.policy import describe
from holdfast.runtime.cgroup import read_quota
from holdfast.runtime.policyfile import PolicyFile

__all__ = ["serve"]


def serve(plan: Plan, say: Callable[[str], None] | None = None) -> int:
    """Host the application of `plan` until a signal; the exit code.

    Args:
        plan: what to host, and how.
        say: takes the lines for whoever typed the command; standard error by default.

    Raises:
        ServeError: it cannot start.
    """
    if find_spec("uvicorn") is None:
        raise ServeError("uvicorn is not installed; run: pip install 'holdfast[serve]'")
    from holdfast.apps.serve.listen import bind, remove_uds, url_of

    file = plan.read()
    plan = replace(plan, source=file.source, data=file.data)
    if "" not in sys.path and str(plan.home) not in sys.path:
        sys.path.insert(0, str(plan.home))
    sock = bind(plan.host, plan.port, plan.uds)
    try:
        tell = say or _say
        url = url_of(sock, tls=bool(plan.certificate))
        return _host(plan, file, sock, url, lambda: tell(_block(plan, file, url)))
    finally:
        sock.close()
        if plan.uds:
            remove_uds(plan.uds)


def _host(
    plan: Plan, file: PolicyFile, sock: socket.socket, url: str, ready: Callable[[], None]
) -> int:
    if plan.workers > 1:
        from holdfast.apps.serve.supervisor import Supervisor

        return Supervisor(plan, file, [sock], url, ready=ready).run()
    from holdfast.apps.serve.listen import why_not
    from holdfast.apps.serve.process import ServiceProcess

    if plan.reload:
        from holdfast.adapters.uvicorn.reload import serve_reloading

        ready()
        serve_reloading(ServiceProcess(plan, url).run_reloaded, sock, plan.home)
        return 0
    try:
        return ServiceProcess(plan, url, ready).run([sock])
    except OSError as error:
        # Two that start at the same time can bind the same port; only one can listen on it.
        if error.errno != errno.EADDRINUSE:
            raise
        raise ServeError(why_not(error, plan.host, plan.port)) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _block(plan: Plan, file: PolicyFile, url: str) -> str:
    """What is served, where, and which policy holds."""
    lines = [f"holdfast {__version__} serves {plan.target}", f"  listens on  {url}"]
    if plan.reload:
        lines.append(f"  reloads     when a Python file below {plan.home} changes")
    elif plan.workers > 1:
        lines.append(f"  processes   {plan.workers} workers, supervised by {os.getpid()}")
    else:
        lines.append(f"  process     {os.getpid()}")
    quota = read_quota()
    lines.append(f"  processors  {threads_for(quota).why}")
    stop = stop_plan(file, memory_of(file, plan.target).read().failures)
    lines.append(f"  stop        {stop.line()}")
    lines += [f"  warning     {warning}" for warning in stop.warnings]
    lines.append(f"  policy      {file.source or 'built-in'}")
    if plan.admin:
        lines.append(f"  live tree   holdfast tree --pid {os.getpid()}")
    return "\n".join([*lines, *(f"  {line}" for line in describe(file.policy).splitlines())])
