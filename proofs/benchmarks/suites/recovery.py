"""Kill of a worker while a run stands at step 200: the gap until another goes on, and its replay.

The run waits for an approval at that moment, so the gap is that of noticing and of replay. It contains no
timeout of a call that happened to be under way, because that is a setting.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC
from pathlib import Path

from temporalio.client import Client

from ..bench import OURS, Bench, Record, bench, cpu_seconds
from ..history import parts
from ..kit import Job

STEP = 200


async def recovery(venvs: Path, subjects: list[str], rounds: int) -> AsyncIterator[Record]:
    """Measure the floor and Perdure, which the target compares."""
    for turn in range(1, rounds + 1):
        async with bench(venvs) as on:
            for subject in (name for name in subjects if name in OURS):
                values = await _measure(on, subject)
                yield Record(
                    suite="recovery", subject=subject, case={"step": STEP}, round=turn, values=values
                )


async def _measure(on: Bench, subject: str) -> dict[str, float]:
    job = Job(id=on.id(subject), steps=STEP + 5, hold_at=STEP)
    async with on.running(subject) as first:
        queue = first.queue
        # The second worker is started before the kill, so that the gap is not that of imports.
        async with on.process(subject, "worker", queue=queue, hold=True) as second:
            await first.driver.ask("start", [job], 60)
            await _wait_until_still(on.client, job.id)
            first.worker.process.kill()
            await first.worker.process.wait()
            await second.go()
            before, killed = cpu_seconds(second.pid), time.time()
            await first.driver.ask("approve", [job], 60)
            began = await _next_call(on.client, job.id, killed)
            cpu = cpu_seconds(second.pid) - before
            await first.driver.ask("finish", [job], 60)
            return {"gap_ms": (began - killed) * 1000, "replay_cpu_ms": cpu * 1000}


async def _wait_until_still(client: Client, workflow_id: str) -> None:
    """Wait until the run does nothing for a second, far enough along."""
    still, length = 0, 0
    while still < 10:
        await asyncio.sleep(0.1)
        described = await client.get_workflow_handle(workflow_id).describe()
        pending = described.raw_description.pending_activities
        same = described.history_length == length and length > STEP * 10 and not pending
        still, length = still + 1 if same else 0, described.history_length


async def _next_call(client: Client, workflow_id: str, after: float) -> float:
    """Return the time when a worker started the first activity after that moment."""
    while True:
        await asyncio.sleep(0.05)
        async for run_id in parts(client, workflow_id):
            handle = client.get_workflow_handle(workflow_id, run_id=run_id)
            async for event in handle.fetch_history_events():
                at = event.event_time.ToDatetime(tzinfo=UTC).timestamp()
                if event.HasField("activity_task_started_event_attributes") and at > after:
                    return at
