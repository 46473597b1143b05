"""The bank: mostly quick, and now and then very slow."""

from __future__ import annotations

import math
import random

from meter import Meter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MEDIAN = 0.2
SPREAD = 0.6
SLOW_SHARE = 0.1
SLOW = (2.0, 4.0)

meter = Meter("bank")


def seconds_for(number: int) -> float:
    """How long a charge takes: always the same for the same number.

    Log-normal with a median of 0.2 s, and one in ten takes 2 to 4 s.
    """
    dice = random.Random(f"charge {number}")
    if dice.random() < SLOW_SHARE:
        return dice.uniform(*SLOW)
    return min(dice.lognormvariate(math.log(MEDIAN), SPREAD), SLOW[0])


async def charge(request: Request) -> JSONResponse:
    """Charge a card."""
    number = request.path_params["number"]
    await meter.do_work(seconds_for(number))
    return JSONResponse({"charged": number})


app = meter.wrap(Starlette(routes=[Route("/charges/{number:int}", charge, methods=["POST"])]))
