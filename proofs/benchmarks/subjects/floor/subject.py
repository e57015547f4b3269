"""The floor as the harness sees it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from proofs.benchmarks.kit import Job, Where

from . import workflow as bare


class Floor:
    """Plain Temporal."""

    workflow = "Floor"
    model = "ask_model"
    tool = "call_tool"

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncGenerator[None]:
        """A worker at its defaults, but for the second that a dead worker's runs are kept for it."""
        async with Worker(
            await self.connect(where),
            task_queue=where.queue,
            workflows=[bare.Floor],
            activities=[bare.ask_model, bare.call_tool],
            max_cached_workflows=where.cache,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        ):
            yield

    async def connect(self, where: Where) -> Any:
        """A client."""
        self.queue = where.queue
        return await Client.connect(where.address)

    async def run(self, client: Client, job: Job) -> str:
        """Start, and wait."""
        await self.started(client, job)
        return await self.finish(client, job)

    async def started(self, client: Client, job: Job) -> None:
        """Start only."""
        await client.start_workflow(bare.Floor.run, job.prompt, id=job.id, task_queue=self.queue)

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the end."""
        return str(await client.get_workflow_handle(job.id).result())

    async def decide(self, client: Client, job: Job) -> None:
        """Allow what waits."""
        await client.get_workflow_handle(job.id).signal(bare.Floor.allow)

    go_on = decide
