"""The example of a producer and a worker, with a RabbitMQ between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aio_pika
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "queue"
PATIENCE = 40.0


@pytest.mark.system
@pytest.mark.real_time
async def test_the_example_does_what_its_page_says(rabbitmq: Any) -> None:
    name = f"thumbnails-{os.getpid()}"
    env = {**os.environ, "RABBITMQ_URL": rabbitmq.url(), "THUMBNAILS_QUEUE": name}
    worker = subprocess.Popen(  # noqa: ASYNC220 - this test does nothing else meanwhile
        [sys.executable, "-m", "holdfast.apps.cli", "run", "worker:host"],
        cwd=EXAMPLE, env=env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        producer = subprocess.run(  # noqa: ASYNC221
            [sys.executable, "producer.py"],
            cwd=EXAMPLE, env=env, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        worker.send_signal(signal.SIGTERM)
        told, _ = worker.communicate(timeout=PATIENCE)
    finally:
        worker.kill()
    said = producer.stdout.splitlines()
    assert said[0].startswith("producer: cat.png ready")
    assert said[1].startswith("producer: dog.png ready")
    assert said[2].startswith("producer: huge.png not shown: deadline exceeded")
    assert said[3].startswith("producer: broken.png not shown")
    assert worker.returncode == 0
    (counts,) = [line for line in told.splitlines() if line.startswith("worker:")]
    for part in ("'done': 2", "'late': 1", "'failed': 2", "'rejected': 2"):
        assert part in counts
    async with await aio_pika.connect(rabbitmq.url()) as connection:
        channel = await connection.channel()
        dead = await channel.get_queue(f"{name}.dead")
        assert dead.declaration_result.message_count == 2
        await channel.queue_delete(name)
        await dead.delete(if_empty=False)
