"""Agents that wait for a person: the memory of the worker for each, and the time to go on.

Warm: the worker has all of them in its cache. Cold: another worker, without a cache, goes on with them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC
from pathlib import Path

from temporalio.client import Client

from ..bench import OURS, Bench, Record, Running, bench, memory_bytes, quantile
from ..kit import Job
from ..processes import Process

AGENTS = 2000
APPROVALS = 200


async def idle(venvs: Path, subjects: list[str], agents: int) -> AsyncIterator[Record]:
    """Measure the floor (a bare workflow that waits for a signal) and Perdure (a held tool call)."""
    for subject in (name for name in subjects if name in OURS):
        async with bench(venvs) as on:
            async for record in _waiting(on, subject, agents):
                yield record


async def _waiting(on: Bench, subject: str, agents: int) -> AsyncIterator[Record]:
    jobs = [Job(id=on.id(subject), steps=1, approval=True) for _ in range(agents)]
    async with on.running(subject, cache=agents + 1000) as running:
        await asyncio.sleep(1)
        before = memory_bytes(running.worker.pid)
        answer = await running.driver.ask("start", jobs, 900, at_once=20)
        await all_wait(on.client, jobs)
        added = memory_bytes(running.worker.pid) - before
        values = await _measure_approvals(on, running.driver, running, jobs[:APPROVALS])
        yield Record(
            suite="idle",
            subject=subject,
            case={"agents": agents, "cache": agents + 1000},
            values={
                "kb_each": added / agents / 1024,
                "start_ms": answer["seconds"] / agents * 1000,
                **values,
            },
        )
        running.worker.process.kill()
        await running.worker.process.wait()
        async with on.process(subject, "worker", queue=running.queue, cache=0) as cold:
            await asyncio.sleep(1)
            before = memory_bytes(cold.pid)
            await asyncio.sleep(5)
            added = memory_bytes(cold.pid) - before
            values = await _measure_approvals(on, running.driver, running, jobs[APPROVALS : 2 * APPROVALS])
            case = {"agents": agents, "cache": 0}
            yield Record(
                suite="idle",
                subject=subject,
                case=case,
                values={"kb_each": added / agents / 1024, **values},
            )


async def _measure_approvals(
    on: Bench, driver: Process, running: Running, jobs: Sequence[Job]
) -> dict[str, float]:
    """Approve ten calls a second; measure the time from each approval to its tool call."""
    answer = await driver.ask("approve", jobs, 300, seconds_apart=0.1)
    approved = {call["id"]: call["at"] for call in answer["each"]}
    await driver.ask("finish", jobs, 300)
    times: list[float] = []
    for job in jobs:
        began = await _tool_began(on.client, job.id, running.names.tool)
        times.append(began - approved[job.id])
    times.sort()
    return {"approval_p50_ms": quantile(times, 0.5) * 1000, "approval_p99_ms": quantile(times, 0.99) * 1000}


async def _tool_began(client: Client, workflow_id: str, tool: str) -> float:
    scheduled = 0
    async for event in client.get_workflow_handle(workflow_id).fetch_history_events():
        if event.activity_task_scheduled_event_attributes.activity_type.name == tool:
            scheduled = event.event_id
        started = event.activity_task_started_event_attributes
        if scheduled and started.scheduled_event_id == scheduled:
            return event.event_time.ToDatetime(tzinfo=UTC).timestamp()
    return float("nan")


async def all_wait(client: Client, jobs: Sequence[Job]) -> None:
    """Wait until no run has a pending activity or workflow task."""
    limit = asyncio.Semaphore(20)

    async def waits(job: Job) -> None:
        async with limit:
            while True:
                described = await client.get_workflow_handle(job.id).describe()
                raw = described.raw_description
                busy = raw.pending_activities or raw.HasField("pending_workflow_task")
                if described.history_length > 8 and not busy:
                    return
                await asyncio.sleep(0.2)

    await asyncio.gather(*(waits(job) for job in jobs))
