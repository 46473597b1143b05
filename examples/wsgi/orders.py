"""orders: a Flask application. It asks stock, within what is left of the caller's deadline."""

from __future__ import annotations

import os

import flask
import requests

import holdfast
from holdfast.adapters.requests import instrument
from holdfast.adapters.wsgi import HoldfastMiddleware
from holdfast.domain.policy import policy_from_mapping

STOCK = os.environ.get("STOCK", "http://127.0.0.1:8002")

app = flask.Flask("orders")
policy = policy_from_mapping({"timeouts": {"request": "3s"}})
app.wsgi_app = HoldfastMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, policy, service="orders"
)

session = instrument(requests.Session(), service="stock")


@app.get("/orders/<item>")
def order(item: str) -> dict[str, object]:
    """Takes as long as stock does, and never longer than the caller waits."""
    found = session.get(f"{STOCK}/stock/{item}")
    found.raise_for_status()
    who = holdfast.current().identity
    return {"item": item, "stock": found.json(), "request": who.echo_id}
