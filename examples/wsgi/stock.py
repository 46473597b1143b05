"""stock: a Django project in one file. Slow items take a minute, and say a byte now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

import holdfast
from holdfast.adapters.wsgi import HoldfastMiddleware


def _slowly() -> Iterator[bytes]:
    for _ in range(600):
        time.sleep(0.1)  # not in a client that could be bounded: between two parts it is noticed
        yield b" "
    yield b"{}"


def stock(_: HttpRequest, item: str) -> HttpResponse | StreamingHttpResponse:
    """How many there are, who asked, and how long it had for that."""
    if item.startswith("slow"):
        return StreamingHttpResponse(_slowly(), content_type="application/json")
    here = holdfast.current()
    left = round(holdfast.remaining(), 3)
    return JsonResponse({"count": 7, "request": here.identity.echo_id, "left": left})


urlpatterns = [path("stock/<item>", stock)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of an example")
application = HoldfastMiddleware(get_wsgi_application(), service="stock")
