"""The middleware: from the environment of a request to a scope, and from its end to an answer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

from holdfast.adapters.wsgi.body import body_of
from holdfast.adapters.wsgi.environ import WireKeys, environ_key
from holdfast.adapters.wsgi.exchange import HERE, Exchange
from holdfast.adapters.wsgi.frameworks import listen
from holdfast.adapters.wsgi.types import App, Environ, StartResponse
from holdfast.domain.cause import Cause
from holdfast.domain.errors import DeadlineExceeded
from holdfast.domain.instant import Duration
from holdfast.domain.policy import DEFAULT_POLICY, Policy
from holdfast.domain.tree import Outcome
from holdfast.domain.wire.answer import status_of
from holdfast.domain.wire.ending import ended_by
from holdfast.runtime.terms import Terms

__all__ = ["HoldfastMiddleware"]

_log: Final = logging.getLogger("holdfast.wsgi")
_WHOLE: Final = (list, tuple)
_FILE: Final = "wsgi.file_wrapper"


class HoldfastMiddleware:
    """Gives every request of a WSGI application a deadline, an identity and an answer in time.

    The deadline is what the caller sent, capped by the policy. Clients in the handler that are
    instrumented wait no longer than that, refuse what cannot be done in time, and tell the next hop
    what is left. Nothing can be cancelled in a thread: code that does not wait in such a client is
    told by nobody, and its answer, which comes too late, is replaced by a 504.

    Args:
        app: the application.
        policy: limits by route; `holdfast.domain.policy.DEFAULT_POLICY` by default.
        service: name of this hop in causes and timings, over that of the policy.
        retry_after: seconds after which a client may try again that was turned away.
        arrival_header: name of a header in which a proxy that is trusted says when it took the
            request, for example `X-Request-Start`; empty for none.

    Attributes:
        counts: requests by what became of them.

    Raises:
        TypeError: `policy` is no `Policy`.
    """

    def __init__(
        self,
        app: App,
        policy: Policy | None = None,
        *,
        service: str = "",
        retry_after: Duration = 1.0,
        arrival_header: str = "",
    ) -> None:
        self.app = app
        self.counts: Counter[str] = Counter()
        self._service = service
        self._retry_after = retry_after
        self._header = environ_key(arrival_header) if arrival_header else ""
        self._heard = False
        self.policy = DEFAULT_POLICY if policy is None else policy

    @property
    def policy(self) -> Policy:
        """The policy in force. It may be replaced at any time; requests under way keep theirs."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        if not isinstance(policy, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"policy must be a Policy, not {type(policy).__name__}; make one of a mapping with "
                "holdfast.domain.policy.policy_from_mapping"
            )
        self._policy = policy.for_service(self._service) if self._service else policy
        terms = Terms(self._policy, self.counts, self._retry_after)
        self._now = terms, WireKeys(self._policy.wire, terms.codec)
        self._off = self._policy.mode == "off"

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if self._off:
            return self.app(environ, start_response)
        if not self._heard:
            # Here, for a framework may be imported with the first request.
            self._heard = True
            listen()
        terms, keys = self._now
        exchange = Exchange(environ, start_response, terms, keys, self._header)
        cause = exchange.open()
        if cause is not None:
            return self.answered(exchange, cause)
        outer = HERE.set(exchange)
        try:
            body = self.app(environ, exchange.start_response)
        except BaseException as error:
            exchange.step_out()
            cause = self.failed(exchange, error)
            if cause is None:
                exchange.close(Outcome.FAILED)
                raise
            try:
                return self.answered(exchange, cause)
            finally:
                exchange.close(Outcome.EXPIRED)
        else:
            exchange.step_out()
        finally:
            HERE.reset(outer)
        if type(body) in _WHOLE or _is_file(environ, body):
            return self._whole(exchange, body)
        return body_of(body, exchange, self)

    def _whole(self, exchange: Exchange, body: Iterable[bytes]) -> Iterable[bytes]:
        """Everything is there, or is a file of the server's; nothing of the application follows."""
        cause = None if exchange.begun else exchange.instead()
        if cause is None and not exchange.late:
            try:
                if not exchange.begun:
                    exchange.begin()
            except BaseException:
                self._close(exchange, body)
                exchange.close(Outcome.FAILED)
                raise
            exchange.close(Outcome.DONE)
            return body
        try:
            self._close(exchange, body)
            if cause is None:
                raise self.cut(exchange)
            return self.answered(exchange, cause)
        finally:
            exchange.close(Outcome.EXPIRED)

    def _close(self, exchange: Exchange, body: Iterable[bytes]) -> None:
        """Close what the server does not get; an error of that is only logged."""
        close = getattr(body, "close", None)
        if close is None:
            return
        exchange.step_in()
        try:
            close()
        except Exception:
            _log.exception("closing the body of %s failed", exchange.scope.name)
        finally:
            exchange.step_out()

    # -- what an end means -----------------------------------------------------------------------

    def failed(self, exchange: Exchange, error: BaseException) -> Cause | None:
        """The cause when `error` is ours and can be answered; else the server gets it as it is."""
        cause = ended_by(error)
        if cause is None:
            if exchange.late and isinstance(error, Exception):
                error.add_note(f"meanwhile: {exchange.cut().cause.line()}")
            return None
        if exchange.begun:
            self._tell_end(exchange, exchange.placed(cause))
            return None
        return cause

    def answered(self, exchange: Exchange, cause: Cause) -> Iterable[bytes]:
        """Answer in place of the application; the body."""
        cause = exchange.placed(cause)
        body = exchange.answer_for(cause)
        self._tell_end(exchange, cause)
        return body

    def cut(self, exchange: Exchange) -> DeadlineExceeded:
        """The error with which the server cuts the response."""
        error = exchange.cut()
        self._tell_end(exchange, error.cause)
        return error

    def _tell_end(self, exchange: Exchange, cause: Cause) -> None:
        self.counts[f"ended.{cause.kind}"] += 1
        _log.info(
            "%d %s request_id=%s: %s",
            status_of(cause),
            exchange.scope.name,
            exchange.carried.identity.echo_id,
            cause.line(),
        )


def _is_file(environ: Environ, body: Iterable[bytes]) -> bool:
    wrapper = environ.get(_FILE)
    return isinstance(wrapper, type) and isinstance(body, wrapper)
