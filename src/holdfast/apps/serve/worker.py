"""A worker process: `python -m holdfast.apps.serve.worker FD`, started by a supervisor only."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
from typing import Final

from holdfast.apps.serve.handover import Handover, handover_from_json
from holdfast.apps.serve.offspring import die_with
from holdfast.apps.serve.plan import Plan
from holdfast.apps.serve.policyfile import PolicyFile
from holdfast.apps.serve.problem import ServeError
from holdfast.apps.serve.workerlink import StopOrder, WorkerEnd
from holdfast.domain.lifecycle.phase import Phase

__all__ = ["main", "run_worker"]

_UNUSABLE: Final = 2
_INTERRUPTED: Final = 130


def main(words: list[str]) -> int:
    """Serve until told to stop; the exit code."""
    link = WorkerEnd(socket.socket(fileno=int(words[0])))
    _dump_on_signals()
    text = link.handover()
    if not text:  # the supervisor was gone before it could say anything
        return 0
    try:
        handover = handover_from_json(text)
        if not die_with(handover.supervisor):
            return 0
        sys.path[:] = handover.path
        link.phase(Phase.INITIALIZING)
        return _serve(handover, link)
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        link.close()


def _dump_on_signals() -> None:
    """From the first moment on the stacks can be asked for, and asking does no harm."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    faulthandler.register(signal.SIGQUIT, all_threads=True, chain=True)


def _serve(handover: Handover, link: WorkerEnd) -> int:
    sockets = [socket.socket(fileno=number) for number in handover.sockets]
    for sock in sockets:
        sock.set_inheritable(False)
    try:
        file = handover.plan.policy()
        return run_worker(handover.plan, file, handover.url, sockets, link)
    except ServeError as error:
        print(f"{error.trace}holdfast serve: {error}", file=sys.stderr, flush=True)
        return _UNUSABLE
    finally:
        link.phase(Phase.STOPPED)


def run_worker(
    plan: Plan, file: PolicyFile, url: str, sockets: list[socket.socket], link: WorkerEnd
) -> int:
    """Serve until the supervisor or a signal says to stop; the exit code.

    Args:
        plan: what to host, and how.
        file: the policy to begin with.
        url: where the service listens, for people.
        sockets: bound; shared with the other workers.
        link: to the supervisor.

    Raises:
        ServeError: it cannot start, and whoever gave the command can put that right.
    """
    from holdfast.apps.serve.process import ServiceProcess

    process = ServiceProcess(plan, url, link.ready, shared=True)

    def stop(order: StopOrder) -> None:
        link.phase(Phase.DRAINING)
        os.kill(os.getpid(), signal.SIGTERM)

    link.listen(stop, file.lifecycle.stop.grace)
    return process.run(sockets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
