"""Floor as the harness sees it."""

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
        """Run a worker with its defaults, but release a dead worker's runs after a second."""
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
        """Connect a client."""
        self.queue = where.queue
        return await Client.connect(where.address)

    async def run(self, client: Client, job: Job) -> str:
        """Start a run, and wait for its answer."""
        await self.start(client, job)
        return await self.finish(client, job)

    async def start(self, client: Client, job: Job) -> None:
        """Start a run."""
        await client.start_workflow(bare.Floor.run, job.prompt, id=job.id, task_queue=self.queue)

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the answer of a run."""
        return str(await client.get_workflow_handle(job.id).result())

    async def approve(self, client: Client, job: Job) -> None:
        """Approve the held tool call."""
        await client.get_workflow_handle(job.id).signal(bare.Floor.allow)
