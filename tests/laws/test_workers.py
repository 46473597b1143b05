"""A pool of workers under the carrier laws."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from holdfast.runtime.workers import workers
from holdfast.testing.laws import Call, CarrierLaws, Handler


class Pool:
    order = "fifo"

    @asynccontextmanager
    async def open(self, handler: Handler) -> AsyncIterator[Call]:
        async with workers(64, order=self.order) as pool:  # type: ignore[arg-type]

            async def call(key: str, takes: float) -> str:
                return await pool.run(handler, key, takes)

            yield call


class ByDeadline(Pool):
    order = "deadline"


class TestWorkers(CarrierLaws):
    carrier = Pool


class TestWorkersByDeadline(CarrierLaws):
    carrier = ByDeadline


@pytest.mark.real_time("asyncio", "uvloop")
class TestWorkersOnRealLoops(CarrierLaws):
    carrier = Pool
    unit = 0.4
    slack = 0.25
