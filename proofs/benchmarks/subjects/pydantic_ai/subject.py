"""Pydantic AI as the harness sees it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic_ai.durable_exec.temporal import PydanticAIPlugin
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from proofs.benchmarks.kit import Job, Where

from . import workflow as agent


class PydanticAI:
    """Pydantic AI with its `TemporalDurability`."""

    workflow = "PydanticAgent"
    model = "agent__bench__model_request"
    tool = "agent__bench__toolset__<agent>__call_tool"
    stream = True

    @asynccontextmanager
    async def worker(self, where: Where) -> AsyncIterator[None]:
        """Run a worker with its default settings."""
        async with Worker(
            await self.connect(where),
            task_queue=where.queue,
            workflows=[agent.PydanticAgent, agent.PydanticStream],
            max_cached_workflows=where.cache,
        ):
            yield

    async def connect(self, where: Where) -> Any:
        """Connect a client."""
        self.queue = where.queue
        return await Client.connect(where.address, plugins=[PydanticAIPlugin()])

    async def run(self, client: Client, job: Job) -> str:
        """Start a run, and wait for its answer."""
        await self.start(client, job)
        return await self.finish(client, job)

    async def start(self, client: Client, job: Job) -> None:
        """Start a run."""
        run: Any = agent.PydanticStream.run if job.tokens else agent.PydanticAgent.run
        await client.start_workflow(run, job.prompt, id=job.id, task_queue=self.queue)

    async def finish(self, client: Client, job: Job) -> str:
        """Wait for the answer of a run."""
        return str(await client.get_workflow_handle(job.id).result())

    async def watch(self, client: Client, job: Job) -> AsyncIterator[str]:
        """Yield the text as a subscriber of the run's events sees it."""
        await _exists(client, job.id)
        async for event in agent.STREAMED.stream_agent_events(client, client.get_workflow_handle(job.id)):
            match event:
                case PartStartEvent(part=TextPart(content=text)):
                    yield text
                case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                    yield text


async def _exists(client: Client, run: str) -> None:
    while True:
        try:
            await client.get_workflow_handle(run).describe()
            return
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            await asyncio.sleep(0.02)
