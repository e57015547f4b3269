"""The LangGraph plugin as the harness sees it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.contrib.workflow_streams import WorkflowStreamClient
from temporalio.langgraph import LangGraphPlugin
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from proofs.benchmarks.kit import Job, Where

from . import workflow as agent

_TOPIC = "tokens"


class LangGraph:
    """LangGraph with Temporal's plugin."""

    workflow = "ReactAgentWorkflow"
    model = f"{agent.NAME}.agent"
    tool = f"{agent.NAME}.tools"
    stream = True

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncIterator[None]:
        """Run a worker with its default settings."""
        plugin = LangGraphPlugin(graphs={agent.NAME: agent.react_agent()}, streaming_topic=_TOPIC)
        async with Worker(
            await self.connect(where),
            task_queue=where.queue,
            workflows=[agent.ReactAgentWorkflow],
            plugins=[plugin],
            max_cached_workflows=where.cache,
        ):
            yield

    async def connect(self, where: Where) -> Any:
        """Connect a client."""
        self.queue = where.queue
        return await Client.connect(where.address, data_converter=pydantic_data_converter)

    async def run(self, client: Client, job: Job) -> str:
        """Start a run, and wait for its answer."""
        await self.start(client, job)
        return await self.finish(client, job)

    async def start(self, client: Client, job: Job) -> None:
        """Start a run."""
        await client.start_workflow(
            agent.ReactAgentWorkflow.run, job.prompt, id=job.id, task_queue=self.queue
        )

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the answer of a run."""
        return str(await client.get_workflow_handle(job.id).result())

    async def watch(self, client: Client, job: Job) -> AsyncIterator[str]:
        """Yield the text as a subscriber of the workflow's stream sees it."""
        await _exists(client, job.id)
        stream = WorkflowStreamClient.create(client, job.id)
        async for item in stream.subscribe(
            [_TOPIC], result_type=dict, poll_cooldown=timedelta(milliseconds=50)
        ):
            if item.data.get("done"):
                return
            yield item.data["token"]


async def _exists(client: Client, run: str) -> None:
    while True:
        try:
            await client.get_workflow_handle(run).describe()
            return
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            await asyncio.sleep(0.02)
