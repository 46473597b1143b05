"""uvicorn: the server of `holdfast serve`, and of programs that host one themselves.

    guard      the limit on the time that a client takes for its headers
    watch      what the connections of a server tell it, and what it tells them
    wire_*     the protocols of uvicorn with arrival instants, that guard, and a farewell
    cycle      a request and its response on httptools, in half of the time
    head       the head of a response, checked and written in one pass
    heads      heads of responses that wait for their bodies
    idling     the limit on the time between two requests
    lifespan   the start and the shutdown of an application, that can be broken off
    listener   a listening socket whose accept queue is emptied before it goes
    drainage   the drain of one server, performed
    server     the component: starts, announces its end, drains, stops

Much of this reaches into seams that uvicorn does not promise. A test of seams pins each of
them, and the version with them.
"""

from __future__ import annotations

from holdfast.adapters.uvicorn.guard import ARRIVAL, HeaderTerms
from holdfast.adapters.uvicorn.server import UvicornApplication, UvicornServer
from holdfast.adapters.uvicorn.settings import Settings

__all__ = ["ARRIVAL", "HeaderTerms", "Settings", "UvicornApplication", "UvicornServer"]
